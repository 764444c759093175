// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/host_device.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/chunk_decode_attention.cuh"
#include "cuda/support/device.hpp"
#include "reference/oracle.hpp"
#include "support/compare.hpp"

/// Problems of decode attention: a batch on the device, and what the oracle makes of it.
namespace chunkllm::testing::decode {

using Fp8 = __nv_fp8_e4m3;
using Bf16 = __nv_bfloat16;

/// A number of mean 0 and variance 1 that host and device agree on.
CHUNKLLM_HD inline float noise(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  x ^= x >> 31;
  const auto sum = static_cast<std::int32_t>((x & 0xffffU) + ((x >> 16) & 0xffffU)) - 65535;
  return static_cast<float>(sum) * 3.737e-5F;
}

template <typename T>
T stored(float value) {
  if constexpr (std::is_same_v<T, Fp8>) {
    return Fp8(value);
  } else {
    return rounded<T>(value);
  }
}
inline double loaded(Fp8 value) {
  return static_cast<double>(static_cast<float>(value));
}
inline double loaded(__half value) {
  return static_cast<double>(widened(value));
}
inline double loaded(Bf16 value) {
  return static_cast<double>(widened(value));
}

/// Radians a token. Multiples of 1/1024, so that angles are exact in f32 and add up exactly.
inline double frequency(std::int64_t i) {
  return static_cast<double>(1 + i * 37 % 500) / 1024.0;
}

struct Shape {
  std::int32_t num_heads = 8;
  std::int32_t num_kv_heads = 2;
  std::int32_t head_dim = 64;
  std::int32_t page_size = 0;  // 0: contiguous
  bool head_major = false;     // a head's tokens side by side
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Rotation k_rotation = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  std::int32_t window = 0;
  float key_scale = 1.0F;
  float value_scale = 1.0F;

  std::string name() const {
    return std::to_string(num_heads) + "/" + std::to_string(num_kv_heads) + " heads of " +
           std::to_string(head_dim) + ", page " + std::to_string(page_size) +
           (head_major ? " head-major" : "") + ", q rotation " +
           std::to_string(static_cast<int>(q_rotation)) + ", k rotation " +
           std::to_string(static_cast<int>(k_rotation)) + ", positions " +
           std::to_string(static_cast<int>(positions)) + ", window " + std::to_string(window);
  }
};

struct Sequence {
  std::int32_t num_tokens = 0;
  std::vector<std::int32_t> span_tokens;
  std::int32_t tail_begin = 0;

  oracle::TokenList attended() const {
    oracle::TokenList list(span_tokens.begin(), span_tokens.end());
    for (std::int32_t t = tail_begin; t < num_tokens; ++t) list.push_back(t);
    return list;
  }
};

/// Everything attended up to 12 tokens, runs of the past and a tail in longer sequences.
inline Sequence some_of(std::int32_t num_tokens) {
  Sequence seq;
  seq.num_tokens = num_tokens;
  if (num_tokens <= 12) return seq;
  seq.tail_begin = num_tokens - 5 - num_tokens / 4;
  for (std::int32_t t = 0; t < seq.tail_begin - 1; ++t) {
    if (t < 2 || t / 7 % 3 != 1) seq.span_tokens.push_back(t);
  }
  return seq;
}
inline std::vector<Sequence> some_of(const std::vector<std::int32_t>& lengths) {
  std::vector<Sequence> seqs;
  for (const std::int32_t length : lengths) seqs.push_back(some_of(length));
  return seqs;
}

/// The tokens of some chunks of 8 to 40 tokens that lie before `end`: about one chunk of `one_of`.
inline std::vector<std::int32_t> tokens_of_some_chunks(std::int32_t end, unsigned one_of,
                                                       std::uint64_t seed) {
  std::vector<std::int32_t> tokens;
  std::mt19937_64 random(seed);
  for (std::int32_t begin = 0; begin < end;) {
    const auto length = static_cast<std::int32_t>(8 + random() % 33);
    const bool attended = random() % one_of == 0;
    for (std::int32_t t = begin; attended && t < std::min(begin + length, end); ++t) {
      tokens.push_back(t);
    }
    begin += length;
  }
  return tokens;
}

/// Ascending tokens as spans.
template <typename Tokens>
std::vector<TokenSpan> spans_of(const Tokens& tokens) {
  std::vector<TokenSpan> spans;
  for (const std::int64_t token : tokens) {
    if (spans.empty() || spans.back().end != token) spans.push_back({token, token});
    spans.back().end = token + 1;
  }
  return spans;
}

struct Outputs {
  std::vector<float> out;
  std::vector<float> lse;
};

/// A batch on the device. Keys and values that no token attends are NaN.
template <typename T, typename Kv>
class Problem {
 public:
  Problem(const Shape& shape, const std::vector<Sequence>& seqs, std::uint64_t seed)
      : shape(shape), seqs(seqs) {
    std::int32_t longest = 1;
    for (const Sequence& seq : seqs) {
      longest = std::max(longest, seq.num_tokens);
      capacity = std::max(capacity, static_cast<std::int32_t>(seq.span_tokens.size()));
    }
    const bool paged = shape.page_size > 0;
    const std::int32_t unit = paged ? shape.page_size : 1;
    view.max_pages = (longest + unit - 1) / unit;
    view.page_size = unit;
    const std::int64_t room = paged ? unit : longest;  // tokens that lie together
    const std::int64_t dim = shape.head_dim;
    view.token_stride = shape.head_major ? dim : dim * shape.num_kv_heads;
    view.head_stride = shape.head_major ? dim * room : dim;
    (paged ? view.page_stride : view.seq_stride) = room * dim * shape.num_kv_heads;
    view.rotation = shape.k_rotation;
    view.key_scale = shape.key_scale;
    view.value_scale = shape.value_scale;
    const auto num_seqs = static_cast<std::int32_t>(seqs.size());
    pages.resize(static_cast<std::size_t>(num_seqs * view.max_pages));
    std::iota(pages.begin(), pages.end(), 3);
    std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
    if (paged) view.page_table = pages.data();
    const auto size = static_cast<std::size_t>(
        paged ? (num_seqs * view.max_pages + 3) * view.page_stride : num_seqs * view.seq_stride);
    const Kv nan = stored<Kv>(std::numeric_limits<float>::quiet_NaN());
    keys.assign(size, nan);
    values.assign(size, nan);
    for (std::int32_t s = 0; s < num_seqs; ++s) {
      for (const std::int64_t token : seqs[static_cast<std::size_t>(s)].attended()) {
        for (std::int32_t i = 0; i < shape.num_kv_heads * shape.head_dim; ++i) {
          const std::uint64_t id =
              (static_cast<std::uint64_t>(s) << 40) + (static_cast<std::uint64_t>(token) << 14) + i;
          const std::size_t at = place(s, static_cast<std::int32_t>(token), i);
          keys[at] = stored<Kv>(noise(seed, id));
          values[at] = stored<Kv>(noise(seed + 1, id));
        }
      }
    }
    for (std::int32_t i = 0; i < num_seqs * shape.num_heads * shape.head_dim; ++i) {
      q.push_back(stored<T>(noise(seed + 2, static_cast<std::uint64_t>(i))));
    }
    rope_count = longest + 1;
    for (std::int32_t p = 0; p < rope_count; ++p) {
      for (int part = 0; part < 2; ++part) {
        for (std::int64_t i = 0; i < dim / 2; ++i) {
          const double angle = static_cast<double>(p) * frequency(i);
          rope.push_back(static_cast<float>(part == 0 ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
  }

  std::size_t place(std::int32_t seq, std::int32_t token, std::int32_t i) const {
    return static_cast<std::size_t>(view.token_offset(seq, token) +
                                    i / shape.head_dim * view.head_stride + i % shape.head_dim);
  }

  /// Sends everything to the device; call again after a change on the host.
  void upload() {
    const auto count = static_cast<std::int32_t>(seqs.size());
    std::vector<std::int32_t> lists(static_cast<std::size_t>(count * capacity), -7);
    std::vector<std::int32_t> sizes;
    std::vector<std::int32_t> tails;
    std::vector<std::int32_t> lengths;
    for (std::size_t s = 0; s < seqs.size(); ++s) {
      std::copy(seqs[s].span_tokens.begin(), seqs[s].span_tokens.end(),
                lists.begin() + static_cast<std::ptrdiff_t>(s) * capacity);
      sizes.push_back(static_cast<std::int32_t>(seqs[s].span_tokens.size()));
      tails.push_back(seqs[s].tail_begin);
      lengths.push_back(seqs[s].num_tokens);
    }
    d_q = std::make_unique<DeviceBuffer<T>>(q);
    d_out = std::make_unique<DeviceBuffer<T>>(q.size());
    d_lse =
        std::make_unique<DeviceBuffer<float>>(static_cast<std::size_t>(count * shape.num_heads));
    d_keys = std::make_unique<DeviceBuffer<Kv>>(keys);
    d_values = std::make_unique<DeviceBuffer<Kv>>(values);
    d_pages = std::make_unique<DeviceBuffer<std::int32_t>>(pages);
    d_lists = std::make_unique<DeviceBuffer<std::int32_t>>(lists);
    d_sizes = std::make_unique<DeviceBuffer<std::int32_t>>(sizes);
    d_tails = std::make_unique<DeviceBuffer<std::int32_t>>(tails);
    d_lengths = std::make_unique<DeviceBuffer<std::int32_t>>(lengths);
    d_rope = std::make_unique<DeviceBuffer<float>>(rope);
    const std::size_t bytes =
        kernels::chunk_decode_attention_workspace_bytes(count, shape.num_heads, shape.head_dim);
    d_workspace = std::make_unique<DeviceBuffer<std::uint8_t>>(bytes);
    ASSERT_TRUE(
        succeeds(kernels::init_decode_attention_workspace(d_workspace->data(), bytes, nullptr)));
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
  }

  kernels::DecodeAttentionArgs<T, Kv> args() const {
    kernels::DecodeAttentionArgs<T, Kv> args;
    args.q = d_q->data();
    args.out = d_out->data();
    args.kv.keys = d_keys->data();
    args.kv.values = d_values->data();
    args.kv.seq_stride = view.seq_stride;
    args.kv.token_stride = view.token_stride;
    args.kv.head_stride = view.head_stride;
    args.kv.page_table = shape.page_size > 0 ? d_pages->data() : nullptr;
    args.kv.max_pages = view.max_pages;
    args.kv.page_size = view.page_size;
    args.kv.page_stride = view.page_stride;
    args.kv.rotation = view.rotation;
    args.kv.key_scale = view.key_scale;
    args.kv.value_scale = view.value_scale;
    args.sets = {d_lists->data(), d_sizes->data(), d_tails->data(),
                 static_cast<std::int32_t>(seqs.size()), capacity};
    args.num_tokens = d_lengths->data();
    args.num_seqs = static_cast<std::int32_t>(seqs.size());
    args.num_heads = shape.num_heads;
    args.num_kv_heads = shape.num_kv_heads;
    args.head_dim = shape.head_dim;
    args.scale = scale();
    args.q_rotation = shape.q_rotation;
    args.positions = shape.positions;
    args.rope = {d_rope->data(), rope_count};
    args.window = shape.window;
    args.maybe_lse = d_lse->data();
    args.workspace = d_workspace->data();
    args.workspace_bytes = d_workspace->size();
    return args;
  }

  float scale() const { return 1.0F / std::sqrt(static_cast<float>(shape.head_dim)); }

  Outputs run(cudaStream_t stream) {
    d_out->poison();
    d_lse->poison();
    EXPECT_TRUE(succeeds(cudaDeviceSynchronize()));  // the poison takes another stream
    EXPECT_TRUE(succeeds(kernels::launch_chunk_decode_attention(args(), stream)));
    return outputs();
  }
  Outputs outputs() const {
    Outputs outputs{widened(d_out->download()), d_lse->download()};
    EXPECT_TRUE(d_out->intact() && d_lse->intact() && d_workspace->intact());
    return outputs;
  }

  /// The first sequence's paged keys and values, on the host.
  template <typename Host>
  KvView<Host> host_view() const {
    KvView<Host> host;
    host.keys = reinterpret_cast<const Host*>(keys.data());
    host.values = reinterpret_cast<const Host*>(values.data());
    host.num_tokens = seqs[0].num_tokens;
    host.token_stride = view.token_stride;
    host.head_stride = view.head_stride;
    host.page_table = pages.data();
    host.page_size = shape.page_size;
    host.page_stride = view.page_stride;
    host.rotation = view.rotation;
    return host;
  }

  /// Row of the oracle: before any rotation, scaled.
  oracle::Row plain_row(std::vector<double> row, std::int64_t token, Rotation rotation) const {
    if (!turned() || rotation == Rotation::kNone) return row;
    const std::int64_t half = shape.head_dim / 2;
    for (std::size_t head = 0; head < row.size(); head += static_cast<std::size_t>(2 * half)) {
      for (std::int64_t i = 0; i < half; ++i) {
        double& a = row[head + static_cast<std::size_t>(i)];
        double& b = row[head + static_cast<std::size_t>(i + half)];
        const double angle = -static_cast<double>(token) * frequency(i);
        const double x = a;
        a = x * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + x * std::sin(angle);
      }
    }
    return row;
  }
  bool turned() const {
    return shape.q_rotation == Rotation::kNone || shape.k_rotation == Rotation::kNone ||
           shape.positions == Positions::kInCache;
  }

  /// What sequence `s` gives in double precision, and how far the kernel may be off.
  ///
  /// With u the unit roundoff of the operands' 16 bit type, S the largest sum of |q_d k_d| and V
  /// the weighted mean of |value|:
  ///  - a score is off by at most d = S (2 D + 16) 2^-24 for f32 sums, the base-2 factor and the
  ///    exponential's argument, and by 2.1 u S more where both operands were rounded after a turn;
  ///    weights then by a factor within exp(+-2 d), numerator and denominator counted;
  ///  - weights are rounded to 16 bits: u V. The exponential itself: 2^-21 V;
  ///  - n weighted values and n weights are summed in f32, no chain longer than n: 2 (n + 64) 2^-24
  ///  V;
  ///  - the output is rounded to T: u_T |out|, and half of its least subnormal.
  struct Expected {
    std::vector<double> out, out_bounds, lse, lse_bounds;
  };
  Expected expected(std::int32_t s) const {
    const Sequence& seq = seqs[static_cast<std::size_t>(s)];
    const auto width = static_cast<std::size_t>(shape.num_kv_heads * shape.head_dim);
    oracle::AttentionShape attention{shape.num_heads,
                                     shape.num_kv_heads,
                                     shape.head_dim,
                                     static_cast<double>(scale()),
                                     shape.window,
                                     shape.positions == Positions::kInCache,
                                     {}};
    if (turned()) {
      attention.angle = [](std::int64_t position, std::int64_t i) {
        return static_cast<double>(position) * frequency(i);
      };
    }
    oracle::Rows key_rows(static_cast<std::size_t>(seq.num_tokens));
    oracle::Rows value_rows(key_rows.size());
    for (const std::int64_t token : seq.attended()) {
      oracle::Row key(width);
      oracle::Row value(width);
      for (std::size_t i = 0; i < width; ++i) {
        const std::size_t at =
            place(s, static_cast<std::int32_t>(token), static_cast<std::int32_t>(i));
        key[i] = loaded(keys[at]) * static_cast<double>(shape.key_scale);
        value[i] = loaded(values[at]) * static_cast<double>(shape.value_scale);
      }
      key_rows[static_cast<std::size_t>(token)] = plain_row(key, token, shape.k_rotation);
      value_rows[static_cast<std::size_t>(token)] = std::move(value);
    }
    const auto q_width = static_cast<std::size_t>(shape.num_heads * shape.head_dim);
    oracle::Row query(q_width);
    for (std::size_t i = 0; i < q_width; ++i) {
      query[i] = loaded(q[static_cast<std::size_t>(s) * q_width + i]);
    }
    const oracle::AttentionRow row =
        oracle::attend(attention, plain_row(query, seq.num_tokens - 1, shape.q_rotation), key_rows,
                       value_rows, seq.attended());
    const double u = sizeof(Kv) == 1 ? kRoundoff<__half> : kRoundoff<T>;
    const auto n = static_cast<double>(seq.attended().size());
    Expected result{row.out, {}, row.lse, {}};
    for (std::size_t i = 0; i < q_width; ++i) {
      const double size = row.score_sizes[i / static_cast<std::size_t>(shape.head_dim)];
      const double d = size * ((2.0 * shape.head_dim + 16.0) * 0x1p-24 + (turned() ? 2.1 * u : 0));
      const double share = u + std::expm1(2.0 * d) + 2.0 * (n + 64.0) * 0x1p-24 + 0x1p-21;
      result.out_bounds.push_back(kRoundoff<T> * std::abs(row.out[i]) + share * row.value_sizes[i] +
                                  0x1p-24);
      if (i % static_cast<std::size_t>(shape.head_dim) == 0) {
        const double lse = row.lse[i / static_cast<std::size_t>(shape.head_dim)];
        result.lse_bounds.push_back(d + (n + 64.0) * 0x1p-24 + 0x1p-21 + std::abs(lse) * 0x1p-22);
      }
    }
    return result;
  }

  /// Compares every sequence with the oracle; idle ones must be untouched.
  void check(const Outputs& got) const {
    const auto width = static_cast<std::size_t>(shape.num_heads * shape.head_dim);
    const auto heads = static_cast<std::size_t>(shape.num_heads);
    for (std::size_t s = 0; s < seqs.size(); ++s) {
      const std::span<const float> out(got.out.data() + s * width, width);
      const std::span<const float> lse(got.lse.data() + s * heads, heads);
      const std::string what = shape.name() + ", sequence " + std::to_string(s) + " of " +
                               std::to_string(seqs[s].num_tokens) + " tokens";
      if (seqs[s].num_tokens == 0) {
        for (const float value : out) ASSERT_TRUE(std::isnan(value)) << what << " was written";
        continue;
      }
      const Expected want = expected(static_cast<std::int32_t>(s));
      ASSERT_TRUE(all_within(out, want.out, want.out_bounds)) << what;
      ASSERT_TRUE(all_within(lse, want.lse, want.lse_bounds)) << "lse, " << what;
    }
  }

  Shape shape;
  std::vector<Sequence> seqs;
  std::int32_t capacity = 1;
  cuda::DeviceKvView<const Kv> view;  // strides, and the page table on the host
  std::vector<std::int32_t> pages;
  std::vector<Kv> keys, values;
  std::vector<T> q;
  std::vector<float> rope;
  std::int32_t rope_count = 0;
  std::unique_ptr<DeviceBuffer<T>> d_q, d_out;
  std::unique_ptr<DeviceBuffer<float>> d_lse, d_rope;
  std::unique_ptr<DeviceBuffer<Kv>> d_keys, d_values;
  std::unique_ptr<DeviceBuffer<std::int32_t>> d_pages, d_lists, d_sizes, d_tails, d_lengths;
  std::unique_ptr<DeviceBuffer<std::uint8_t>> d_workspace;
};

inline bool same_bits(const Outputs& a, const Outputs& b) {
  return a.out.size() == b.out.size() && a.lse.size() == b.lse.size() &&
         std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(float)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

}  // namespace chunkllm::testing::decode
