// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/kernels/chunk_keys.cuh"
#include "chunkllm/kernels/pool_chunks.cuh"
#include "cuda/support/device.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::random_values;
using testing::rounded;
using testing::succeeds;
using testing::widened;

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

/// As a `DeviceBuffer` is before it is written.
template <typename T>
std::vector<T> poison(std::int64_t count) {
  std::vector<T> values(at(count));
  if (count > 0) std::memset(static_cast<void*>(values.data()), 0xff, values.size() * sizeof(T));
  return values;
}

/// Bit by bit, so that untouched poison counts as equal and -0 differs from 0.
template <typename T>
::testing::AssertionResult same_bits(const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() != expected.size()) {
    return ::testing::AssertionFailure()
           << actual.size() << " values, expected " << expected.size();
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) continue;
    return ::testing::AssertionFailure()
           << "value " << i << " of " << actual.size() << " is " << widened(actual[i])
           << ", expected " << widened(expected[i]);
  }
  return ::testing::AssertionSuccess();
}

std::vector<std::int32_t> flat_ends(const std::vector<ChunkTable>& tables,
                                    std::int32_t max_chunks) {
  std::vector<std::int32_t> ends;
  for (const ChunkTable& table : tables) {
    for (std::int32_t c = 0; c < max_chunks; ++c) {
      ends.push_back(c < table.num_chunks() ? static_cast<std::int32_t>(table.end(c)) : -1);
    }
  }
  return ends;
}
std::vector<std::int32_t> chunk_counts(const std::vector<ChunkTable>& tables) {
  std::vector<std::int32_t> counts;
  for (const ChunkTable& table : tables) {
    counts.push_back(static_cast<std::int32_t>(table.num_chunks()));
  }
  return counts;
}

using RowTypes = ::testing::Types<float, __half, __nv_bfloat16>;
template <typename T>
class ChunkKeysOf : public testing::DeviceTest {};
TYPED_TEST_SUITE(ChunkKeysOf, RowTypes);
using ChunkKeysDecode = testing::DeviceTest;

// --- decode, mean keys ---------------------------------------------------------------------------

template <typename Row, typename Key>
void decode_mean_keys(cudaStream_t stream, std::uint64_t seed, std::int64_t row_size) {
  SCOPED_TRACE("row_size " + std::to_string(row_size));
  std::mt19937_64 random(seed);
  std::bernoulli_distribution likely(0.25);
  constexpr std::int32_t kLayers = 3;
  constexpr std::int32_t kSeqs = 5;
  constexpr std::int32_t kMaxChunks = 30;
  constexpr int kSteps = 60;
  const std::int64_t num_queries = 2 * row_size;
  const std::int64_t row_stride = row_size + 16;
  const std::int64_t query_stride = num_queries + 8;
  const MeanKeyScorer scorer(2, 1, row_size, 1.0F);

  std::vector<ChunkTable> tables(kSeqs);
  std::vector<std::int32_t> num_tokens(kSeqs, 0);
  std::vector<float> sums = poison<float>(kLayers * kSeqs * row_size);
  std::vector<Key> keys = poison<Key>(kLayers * kSeqs * kMaxChunks * row_size);
  std::vector<float> queries = poison<float>(kLayers * kSeqs * num_queries);
  std::vector<float> open_keys = poison<float>(kLayers * kSeqs * row_size);
  const DeviceBuffer<float> device_sums(sums.size());
  const DeviceBuffer<Key> device_keys(keys.size());
  const DeviceBuffer<float> device_queries(queries.size());
  const DeviceBuffer<float> device_open_keys(open_keys.size());

  for (int step = 0; step < kSteps; ++step) {
    std::vector<std::int32_t> triggers(kSeqs, -1);
    std::vector<bool> in_use(kSeqs, false);
    for (std::int32_t s = 0; s < kSeqs; ++s) {
      if (s == 2 || step < 4 * s) continue;  // sequence 2 never begins
      const std::int32_t count = ++num_tokens[at(s)];
      in_use[at(s)] = true;
      const bool closes = likely(random) && tables[at(s)].num_chunks() < kMaxChunks;
      if (closes) tables[at(s)].close(count);
      if (closes || likely(random)) triggers[at(s)] = count - 1;
    }
    const std::vector<Row> rows = rounded<Row>(random_values(random, kLayers * kSeqs * row_stride));
    const std::vector<Row> query_rows =
        rounded<Row>(random_values(random, kLayers * kSeqs * query_stride));
    for (std::int32_t l = 0; l < kLayers; ++l) {
      for (std::int32_t s = 0; s < kSeqs; ++s) {
        if (!in_use[at(s)]) continue;
        const ChunkTable& table = tables[at(s)];
        const std::int64_t ls = l * kSeqs + s;
        const std::int64_t token = num_tokens[at(s)] - 1;
        const bool closes = table.num_chunks() > 0 && table.open_begin() == token + 1;
        const std::int64_t chunk = table.num_chunks() - (closes ? 1 : 0);
        std::vector<float> key(at(row_size));
        std::vector<float> query(at(num_queries));
        for (std::int64_t i = 0; i < row_size; ++i)
          key[at(i)] = widened(rows[at(ls * row_stride + i)]);
        for (std::int64_t i = 0; i < num_queries; ++i) {
          query[at(i)] = widened(query_rows[at(ls * query_stride + i)]);
        }
        const TokenRow row{nullptr, query.data(), key.data()};
        float* sum = sums.data() + ls * row_size;
        scorer.add_token(l, row, token == table.begin(chunk), sum);
        const std::int64_t length = token + 1 - table.begin(chunk);
        std::vector<float> mean(at(row_size));
        scorer.make_key(l, sum, length, mean.data());
        if (closes) {
          const std::vector<Key> made = rounded<Key>(mean);
          std::copy(made.begin(), made.end(), keys.begin() + (ls * kMaxChunks + chunk) * row_size);
        }
        if (triggers[at(s)] < 0) continue;
        scorer.make_query(l, row, queries.data() + ls * num_queries);
        if (!closes) std::copy(mean.begin(), mean.end(), open_keys.begin() + ls * row_size);
      }
    }
    const DeviceBuffer<Row> device_rows(rows, 16 / sizeof(Row));
    const DeviceBuffer<Row> device_query_rows(query_rows);
    const DeviceBuffer<std::int32_t> ends(flat_ends(tables, kMaxChunks));
    const DeviceBuffer<std::int32_t> counts(chunk_counts(tables));
    const DeviceBuffer<std::int32_t> device_tokens(num_tokens);
    const DeviceBuffer<std::int32_t> device_triggers(triggers);
    UpdateChunkKeysArgs<Row, Key> args;
    args.num_layers = kLayers;
    args.row_size = static_cast<std::int32_t>(row_size);
    args.key_size = args.row_size;
    args.num_query_features = static_cast<std::int32_t>(num_queries);
    args.table = {ends.data(), counts.data(), kSeqs, kMaxChunks};
    args.num_tokens = device_tokens.data();
    args.maybe_triggers = device_triggers.data();
    args.rows = device_rows.data();
    args.row_layer_stride = kSeqs * row_stride;
    args.row_seq_stride = row_stride;
    args.open_sums = device_sums.data();
    args.sum_layer_stride = kSeqs * row_size;
    args.keys = device_keys.data();
    args.key_layer_stride = kSeqs * kMaxChunks * row_size;
    args.maybe_query_rows = device_query_rows.data();
    args.query_row_layer_stride = kSeqs * query_stride;
    args.query_row_seq_stride = query_stride;
    args.queries = device_queries.data();
    args.query_layer_stride = kSeqs * num_queries;
    args.maybe_open_keys = device_open_keys.data();
    args.open_key_layer_stride = kSeqs * row_size;
    ASSERT_TRUE(succeeds(launch_update_chunk_keys(args, stream)));
    ASSERT_TRUE(succeeds(cudaStreamSynchronize(stream)));
    if (step % 20 != 0 && step + 1 != kSteps) continue;
    SCOPED_TRACE("step " + std::to_string(step));
    ASSERT_TRUE(same_bits(device_sums.download(), sums));
    ASSERT_TRUE(same_bits(device_keys.download(), keys));
    ASSERT_TRUE(same_bits(device_queries.download(), queries));
    ASSERT_TRUE(same_bits(device_open_keys.download(), open_keys));
  }
  EXPECT_TRUE(device_sums.intact() && device_keys.intact() && device_queries.intact() &&
              device_open_keys.intact());
}

TYPED_TEST(ChunkKeysOf, DecodeMeanKeysHaveTheCpusBits) {
  for (const std::int64_t row_size : {8, 16, 1024, 2040, 2048, 2056}) {
    decode_mean_keys<TypeParam, TypeParam>(this->stream_, this->seed(), row_size);
    if (this->HasFatalFailure()) return;
  }
  decode_mean_keys<TypeParam, float>(this->stream_, this->seed(), 64);
}

// --- decode, QK Adapter --------------------------------------------------------------------------

struct AdapterShape {
  std::int64_t row_size;
  std::int64_t num_heads;
  std::int64_t key_dim;
  std::int64_t key_size;
  bool has_nulls;
  KeyPooling pooling = KeyPooling::kMean;
  bool has_gaps = false;  ///< queries begin at multiples of 16 bytes
};

/// Sum of products in double, and what bounds the error of an f32 sum of them.
struct Product {
  double value = 0.0;
  double bound = 0.0;
};
Product product(const float* a, const float* b, std::int64_t size, double scale) {
  Product made;
  double magnitude = 0.0;
  for (std::int64_t i = 0; i < size; ++i) {
    const double term = static_cast<double>(a[i]) * static_cast<double>(b[i]);
    made.value += term;
    magnitude += std::abs(term);
  }
  made.value *= scale;
  made.bound = static_cast<double>(size + 16) * testing::kUnitRoundoff * magnitude * scale;
  return made;
}

template <typename Key>
double rounding_of(double value) {
  if (std::is_same_v<Key, float>) return 0.0;
  return std::is_same_v<Key, __half> ? 0x1p-10 * std::abs(value) + 0x1p-24
                                     : 0x1p-7 * std::abs(value);
}

template <typename Row, typename Key, typename Weight>
void decode_adapter(cudaStream_t stream, std::uint64_t seed, const AdapterShape& shape,
                    std::int32_t num_seqs) {
  SCOPED_TRACE("row_size " + std::to_string(shape.row_size) + ", key_size " +
               std::to_string(shape.key_size) + ", " + std::to_string(num_seqs) + " sequences");
  std::mt19937_64 random(seed);
  constexpr std::int32_t kLayers = 2;
  constexpr std::int32_t kMaxChunks = 3;
  const std::int64_t num_features = shape.num_heads * shape.key_dim;
  const std::int64_t query_size = num_features + (shape.has_nulls ? shape.num_heads : 0);
  const std::int64_t query_stride = shape.has_gaps ? (query_size + 3) / 4 * 4 : query_size;
  const float weight_scale = 1.0F / std::sqrt(static_cast<float>(shape.row_size));

  // Sequence s: 0 closes and triggers, 1 is not in use, 2 does nothing, 3 triggers with its chunk
  // open, 4 closes alone, 5 closes its second chunk with the first token of it; then all over.
  std::vector<ChunkTable> tables(at(num_seqs));
  std::vector<std::int32_t> num_tokens(at(num_seqs));
  std::vector<std::int32_t> triggers(at(num_seqs), -1);
  for (std::int32_t s = 0; s < num_seqs; ++s) {
    const std::int32_t kind = s % 6;
    num_tokens[at(s)] = kind == 1 ? 0 : 7;
    if (kind == 0 || kind == 3) triggers[at(s)] = 6;
    if (kind == 1) triggers[at(s)] = 6;  // stale, and without meaning
    if (kind == 3) tables[at(s)].close(4);
    if (kind == 5) tables[at(s)].close(6);
    if (kind == 0 || kind == 4 || kind == 5) tables[at(s)].close(7);
  }
  const std::vector<Row> rows =
      rounded<Row>(random_values(random, kLayers * num_seqs * shape.row_size));
  const std::vector<float> old_sums = random_values(random, kLayers * num_seqs * shape.row_size);
  const std::vector<Weight> key_weight = rounded<Weight>(
      random_values(random, kLayers * shape.key_size * shape.row_size, weight_scale));
  const std::vector<Weight> query_weight =
      rounded<Weight>(random_values(random, kLayers * num_features * shape.row_size, weight_scale));
  const std::vector<Weight> null_weight = rounded<Weight>(
      random_values(random, kLayers * shape.num_heads * shape.row_size, weight_scale));
  const std::vector<float> null_bias = random_values(random, kLayers * shape.num_heads);

  const DeviceBuffer<Row> device_rows(rows);
  const DeviceBuffer<Weight> device_key_weight(key_weight);
  const DeviceBuffer<Weight> device_query_weight(query_weight);
  const DeviceBuffer<Weight> device_null_weight(null_weight);
  const DeviceBuffer<float> device_null_bias(null_bias);
  const DeviceBuffer<std::int32_t> ends(flat_ends(tables, kMaxChunks));
  const DeviceBuffer<std::int32_t> counts(chunk_counts(tables));
  const DeviceBuffer<std::int32_t> device_tokens(num_tokens);
  const DeviceBuffer<std::int32_t> device_triggers(triggers);
  DeviceBuffer<float> sums(old_sums);
  const DeviceBuffer<Key> keys(at(kLayers * num_seqs * kMaxChunks * shape.key_size), 1);
  const DeviceBuffer<float> queries(at(kLayers * num_seqs * query_stride), 1);
  const DeviceBuffer<float> open_keys(at(kLayers * num_seqs * shape.key_size), 1);
  UpdateChunkKeysArgs<Row, Key, Weight> args;
  args.num_layers = kLayers;
  args.row_size = static_cast<std::int32_t>(shape.row_size);
  args.key_size = static_cast<std::int32_t>(shape.key_size);
  args.num_heads = static_cast<std::int32_t>(shape.num_heads);
  args.num_query_features = static_cast<std::int32_t>(num_features);
  args.pooling = shape.pooling;
  args.table = {ends.data(), counts.data(), num_seqs, kMaxChunks};
  args.num_tokens = device_tokens.data();
  args.maybe_triggers = device_triggers.data();
  args.rows = device_rows.data();
  args.row_layer_stride = num_seqs * shape.row_size;
  args.row_seq_stride = shape.row_size;
  args.open_sums = sums.data();
  args.sum_layer_stride = num_seqs * shape.row_size;
  args.keys = keys.data();
  args.key_layer_stride = num_seqs * kMaxChunks * shape.key_size;
  args.maybe_key_weight = device_key_weight.data();
  args.maybe_query_weight = device_query_weight.data();
  if (shape.has_nulls) {
    args.maybe_null_weight = device_null_weight.data();
    args.maybe_null_bias = device_null_bias.data();
  } else {
    args.maybe_open_keys = open_keys.data();
    args.open_key_layer_stride = num_seqs * shape.key_size;
  }
  args.queries = queries.data();
  args.query_layer_stride = num_seqs * query_stride;
  if (shape.has_gaps) args.query_seq_stride = query_stride;
  ASSERT_EQ(args.query_size(), query_size);
  ASSERT_TRUE(succeeds(launch_update_chunk_keys(args, stream)));
  const std::vector<float> got_sums = sums.download();
  const std::vector<Key> raw_keys = keys.download();
  const std::vector<float> got_keys = widened(raw_keys);
  const std::vector<float> got_queries = queries.download();
  const std::vector<float> got_open_keys = open_keys.download();

  const std::vector<float> wide_rows = widened(rows);
  const std::vector<float> wide_keys = widened(key_weight);
  const std::vector<float> wide_queries = widened(query_weight);
  const std::vector<float> wide_nulls = widened(null_weight);
  const double nan = std::numeric_limits<double>::quiet_NaN();  // expected where nothing is written
  std::vector<float> expected_sums = old_sums;
  std::vector<double> key_values(got_keys.size(), nan);
  std::vector<double> key_bounds(got_keys.size(), 0.0);
  std::vector<double> open_values(got_open_keys.size(), nan);
  std::vector<double> open_bounds(got_open_keys.size(), 0.0);
  std::vector<double> query_values(got_queries.size(), nan);
  std::vector<double> query_bounds(got_queries.size(), 0.0);
  for (std::int64_t l = 0; l < kLayers; ++l) {
    for (std::int64_t s = 0; s < num_seqs; ++s) {
      const std::int64_t kind = s % 6;
      if (kind == 1) continue;
      const std::int64_t ls = l * num_seqs + s;
      const float* row = wide_rows.data() + ls * shape.row_size;
      float* sum = expected_sums.data() + ls * shape.row_size;
      const bool replace = kind == 5 || shape.pooling == KeyPooling::kEndToken;
      for (std::int64_t i = 0; i < shape.row_size; ++i) sum[i] = replace ? row[i] : sum[i] + row[i];
      const bool closes = kind == 0 || kind == 4 || kind == 5;
      const std::int64_t length = kind == 3 ? 3 : (kind == 5 ? 1 : 7);
      const double scale =
          shape.pooling == KeyPooling::kMean ? 1.0 / static_cast<double>(length) : 1.0;
      const std::int64_t chunk = kind == 5 ? 1 : 0;
      for (std::int64_t k = 0; k < shape.key_size; ++k) {
        const Product made = product(wide_keys.data() + (l * shape.key_size + k) * shape.row_size,
                                     sum, shape.row_size, scale);
        if (closes) {
          const std::size_t to = at((ls * kMaxChunks + chunk) * shape.key_size + k);
          key_values[to] = made.value;
          key_bounds[to] = made.bound + rounding_of<Key>(made.value);
        } else if (kind == 3 && !shape.has_nulls) {
          open_values[at(ls * shape.key_size + k)] = made.value;
          open_bounds[at(ls * shape.key_size + k)] = made.bound;
        }
      }
      if (kind != 0 && kind != 3) continue;
      for (std::int64_t q = 0; q < query_size; ++q) {
        const bool is_null = q >= num_features;
        const std::int64_t head = q - num_features;
        Product made =
            product(is_null ? wide_nulls.data() + (l * shape.num_heads + head) * shape.row_size
                            : wide_queries.data() + (l * num_features + q) * shape.row_size,
                    row, shape.row_size, 1.0);
        if (is_null) {
          const double bias = null_bias[at(l * shape.num_heads + head)];
          made.value += bias;
          made.bound += 4.0 * testing::kUnitRoundoff * std::abs(bias);
        }
        query_values[at(ls * query_stride + q)] = made.value;
        query_bounds[at(ls * query_stride + q)] = made.bound;
      }
    }
  }
  EXPECT_TRUE(same_bits(got_sums, expected_sums));
  EXPECT_TRUE(testing::all_within(got_keys, key_values, key_bounds)) << "keys";
  EXPECT_TRUE(testing::all_within(got_open_keys, open_values, open_bounds)) << "open keys";
  EXPECT_TRUE(testing::all_within(got_queries, query_values, query_bounds)) << "queries";
  EXPECT_TRUE(sums.intact() && keys.intact() && queries.intact() && open_keys.intact());

  // Once more on the same sums: the same bits.
  const DeviceBuffer<Key> again(keys.size(), 1);
  sums.upload(old_sums);
  args.keys = again.data();
  ASSERT_TRUE(succeeds(launch_update_chunk_keys(args, stream)));
  EXPECT_TRUE(same_bits(again.download(), raw_keys));
  EXPECT_TRUE(same_bits(queries.download(), got_queries));
}

TYPED_TEST(ChunkKeysOf, DecodeAdapterProjectsSumsAndRows) {
  for (const AdapterShape& shape :
       {AdapterShape{8, 1, 1, 1, false}, AdapterShape{248, 3, 5, 5, true},
        AdapterShape{256, 4, 4, 16, false}, AdapterShape{264, 2, 8, 17, true},
        AdapterShape{4096, 4, 32, 128, true}, AdapterShape{4104, 2, 16, 31, false},
        AdapterShape{576, 9, 48, 144, true, KeyPooling::kMean, true},
        AdapterShape{2048, 2, 4, 8, false, KeyPooling::kEndToken}}) {
    decode_adapter<TypeParam, TypeParam, TypeParam>(this->stream_, this->seed(), shape, 7);
    if (this->HasFatalFailure()) return;
  }
}

TEST_F(ChunkKeysDecode, RowsKeysAndWeightsMayDiffer) {
  const AdapterShape shape{1024, 4, 8, 32, true};
  decode_adapter<float, __nv_bfloat16, __nv_bfloat16>(stream_, seed(), shape, 6);
  decode_adapter<__nv_bfloat16, float, float>(stream_, seed(), shape, 6);
  decode_adapter<__half, float, __nv_bfloat16>(stream_, seed(), shape, 1);
}

TEST_F(ChunkKeysDecode, BatchesLargerThanABlockAreWalkedThrough) {
  decode_adapter<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>(stream_, seed(), {64, 2, 4, 8, true},
                                                              523);
}

TEST_F(ChunkKeysDecode, ManyLayersInAGraphAndOnTwoStreams) {
  std::mt19937_64 random(seed());
  constexpr std::int32_t kLayers = 32;
  constexpr std::int32_t kSeqs = 4;
  constexpr std::int32_t kRow = 4096;
  constexpr std::int32_t kOut = 128;
  // One matrix of random weights serves all layers by stepping through it.
  const std::vector<__nv_bfloat16> pattern =
      rounded<__nv_bfloat16>(random_values(random, kOut * kRow + 8 * kLayers, 0.02F));
  std::vector<__nv_bfloat16> weights;
  for (int l = 0; l < kLayers; ++l) {
    weights.insert(weights.end(), pattern.begin() + 8 * l, pattern.begin() + 8 * l + kOut * kRow);
  }
  const DeviceBuffer<__nv_bfloat16> weight(weights);
  const DeviceBuffer<__nv_bfloat16> rows(
      rounded<__nv_bfloat16>(random_values(random, kLayers * kSeqs * kRow)));
  const DeviceBuffer<std::int32_t> ends(std::vector<std::int32_t>{5, 9, 5, 5});
  const DeviceBuffer<std::int32_t> counts(std::vector<std::int32_t>{1, 1, 1, 1});
  const DeviceBuffer<std::int32_t> tokens(std::vector<std::int32_t>{9, 9, 9, 9});
  const DeviceBuffer<std::int32_t> triggers(std::vector<std::int32_t>{-1, 8, -1, 8});
  struct Run {
    DeviceBuffer<float> sums;
    DeviceBuffer<__nv_bfloat16> keys;
    DeviceBuffer<float> queries;
  };
  std::vector<Run> runs;
  for (int i = 0; i < 3; ++i) {
    runs.push_back({DeviceBuffer<float>(std::vector<float>(kLayers * kSeqs * kRow, 0.5F)),
                    DeviceBuffer<__nv_bfloat16>(kLayers * kSeqs * kOut),
                    DeviceBuffer<float>(kLayers * kSeqs * kOut)});
  }
  const auto args_of = [&](std::size_t i) {
    UpdateChunkKeysArgs<__nv_bfloat16, __nv_bfloat16> args;
    args.num_layers = kLayers;
    args.row_size = kRow;
    args.key_size = kOut;
    args.num_query_features = kOut;
    args.table = {ends.data(), counts.data(), kSeqs, 1};
    args.num_tokens = tokens.data();
    args.maybe_triggers = triggers.data();
    args.rows = rows.data();
    args.row_layer_stride = kSeqs * kRow;
    args.row_seq_stride = kRow;
    args.open_sums = runs[i].sums.data();
    args.sum_layer_stride = kSeqs * kRow;
    args.keys = runs[i].keys.data();
    args.key_layer_stride = kSeqs * kOut;
    args.maybe_key_weight = weight.data();
    args.maybe_query_weight = weight.data();
    args.queries = runs[i].queries.data();
    args.query_layer_stride = kSeqs * kOut;
    return args;
  };
  launch_three_ways(
      [&](std::size_t i, cudaStream_t s) { return launch_update_chunk_keys(args_of(i), s); });
  for (std::size_t i = 1; i < runs.size(); ++i) {
    EXPECT_TRUE(same_bits(runs[i].sums.download(), runs[0].sums.download()));
    EXPECT_TRUE(same_bits(runs[i].keys.download(), runs[0].keys.download()));
    EXPECT_TRUE(same_bits(runs[i].queries.download(), runs[0].queries.download()));
  }
  const std::vector<__nv_bfloat16> keys = runs[0].keys.download();
  const std::vector<float> queries = runs[0].queries.download();
  for (std::int32_t i = 0; i < kLayers * kSeqs * kOut; ++i) {
    const std::int32_t seq = i / kOut % kSeqs;
    ASSERT_EQ(std::isnan(widened(keys[at(i)])), seq != 1) << i;
    ASSERT_EQ(std::isnan(queries[at(i)]), seq % 2 == 0) << i;
  }
}

TEST_F(ChunkKeysDecode, NaNAndInfinitiesPassThroughAndAFirstTokenForgetsThem) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const DeviceBuffer<float> rows(std::vector<float>{nan, inf, -inf, 1, -0.0F, 2, 3, inf});
  const DeviceBuffer<float> sums(std::vector<float>{0, 0, inf, nan, -0.0F, 1, inf, -inf});
  const DeviceBuffer<float> keys(16);
  const DeviceBuffer<std::int32_t> ends(std::vector<std::int32_t>{2, -1});
  const DeviceBuffer<std::int32_t> counts(std::vector<std::int32_t>{1});
  const DeviceBuffer<std::int32_t> tokens(std::vector<std::int32_t>{2});
  UpdateChunkKeysArgs<float, float> args;
  args.num_layers = 1;
  args.row_size = 8;
  args.key_size = 8;
  args.table = {ends.data(), counts.data(), 1, 2};
  args.num_tokens = tokens.data();
  args.rows = rows.data();
  args.open_sums = sums.data();
  args.keys = keys.data();
  ASSERT_TRUE(succeeds(launch_update_chunk_keys(args, stream_)));
  const std::vector<double> expected = {nan, inf, nan, nan, -0.0, 1.5, inf, nan};
  std::vector<float> got = keys.download();
  got.resize(8);
  EXPECT_TRUE(testing::all_within(got, expected, 0.0));
  // The next token begins a chunk.
  const DeviceBuffer<std::int32_t> next(std::vector<std::int32_t>{3});
  args.num_tokens = next.data();
  ASSERT_TRUE(succeeds(launch_update_chunk_keys(args, stream_)));
  const std::vector<double> replaced = {nan, inf, -inf, 1, -0.0, 2, 3, inf};
  EXPECT_TRUE(testing::all_within(sums.download(), replaced, 0.0));
}

// --- prefill -------------------------------------------------------------------------------------

template <typename Row>
void prefill_in_blocks(cudaStream_t stream, std::uint64_t seed, std::int64_t row_size,
                       KeyPooling pooling, std::int32_t num_tokens,
                       const std::vector<std::int32_t>& block_sizes, double density) {
  SCOPED_TRACE("row_size " + std::to_string(row_size));
  std::mt19937_64 random(seed);
  std::bernoulli_distribution closes(density);
  constexpr std::int32_t kSeq = 1;  // of two; the other one's row is poison
  const std::int64_t stride = row_size + 8;
  const std::vector<Row> rows = rounded<Row>(random_values(random, num_tokens * stride));
  const DeviceBuffer<Row> device_rows(rows, 16 / sizeof(Row));
  const DeviceBuffer<float> open_sum(at(row_size));

  ChunkTable table;
  std::vector<float> sum(at(row_size));
  std::int32_t first = 0;
  for (std::size_t b = 0; first < num_tokens; ++b) {
    const std::int32_t size = std::min(block_sizes[b % block_sizes.size()], num_tokens - first);
    SCOPED_TRACE("block of " + std::to_string(size) + " from " + std::to_string(first));
    const auto first_chunk = static_cast<std::int32_t>(table.num_chunks());
    std::vector<float> pooled;
    std::vector<std::int32_t> triggers = {-1};
    std::vector<float> open_keys(at(row_size), 0.0F);
    for (std::int32_t token = first; token < first + size; ++token) {
      const bool is_first = token == table.open_begin() || pooling == KeyPooling::kEndToken;
      for (std::int64_t i = 0; i < row_size; ++i) {
        const float value = widened(rows[at(token * stride + i)]);
        sum[at(i)] = is_first ? value : sum[at(i)] + value;
      }
      const float length = static_cast<float>(token + 1 - table.open_begin());
      const float scale = pooling == KeyPooling::kMean ? 1.0F / length : 1.0F;
      std::vector<float> mean = sum;
      for (float& value : mean) value *= scale;
      if (closes(random)) {
        pooled.insert(pooled.end(), mean.begin(), mean.end());
        table.close(token + 1);
        std::fill(mean.begin(), mean.end(), 0.0F);  // no chunk is open
      }
      if (size <= 64 || token % 7 == 0 || table.open_begin() == token + 1) {
        triggers.push_back(token);
        open_keys.insert(open_keys.end(), mean.begin(), mean.end());
      }
    }
    triggers.push_back(first + size);  // outside
    open_keys.insert(open_keys.end(), at(row_size), 0.0F);
    const auto num_new = static_cast<std::int32_t>(table.num_chunks()) - first_chunk;
    const std::int32_t max_chunks = first_chunk + num_new + 1;
    const DeviceBuffer<std::int32_t> ends(flat_ends({{}, table}, max_chunks));
    const DeviceBuffer<std::int32_t> counts(
        std::vector<std::int32_t>{0, static_cast<std::int32_t>(table.num_chunks())});

    TokenBlock<Row> block;
    block.rows = device_rows.data() + first * stride;
    block.row_stride = stride;
    block.num_rows = size;
    block.row_size = static_cast<std::int32_t>(row_size);
    block.first_token = first;
    block.seq = kSeq;
    block.table = {ends.data(), counts.data(), 2, max_chunks};
    block.pooling = pooling;
    const DeviceBuffer<std::int32_t> device_triggers(triggers);
    const DeviceBuffer<float> device_open_keys(open_keys.size());
    const DeviceBuffer<__half> rounded_open_keys(open_keys.size());
    const OpenKeysArgs<Row, __half> open_args{block,
                                              open_sum.data(),
                                              device_triggers.data(),
                                              static_cast<std::int32_t>(triggers.size()),
                                              device_open_keys.data(),
                                              rounded_open_keys.data()};
    ASSERT_TRUE(succeeds(launch_open_keys_at_triggers(open_args, stream)));
    const DeviceBuffer<float> device_pooled(pooled.size());
    const DeviceBuffer<__nv_bfloat16> rounded_pooled(pooled.size());
    PoolChunksArgs<Row, __nv_bfloat16> args;
    args.block = block;
    args.first_chunk = first_chunk;
    args.num_new_chunks = num_new;
    args.open_sum = open_sum.data();
    args.maybe_pooled = device_pooled.data();
    args.maybe_rounded = rounded_pooled.data();
    ASSERT_TRUE(succeeds(launch_pool_chunks(args, stream)));
    ASSERT_TRUE(same_bits(device_open_keys.download(), open_keys));
    ASSERT_TRUE(same_bits(rounded_open_keys.download(), rounded<__half>(open_keys)));
    ASSERT_TRUE(same_bits(device_pooled.download(), pooled));
    ASSERT_TRUE(same_bits(rounded_pooled.download(), rounded<__nv_bfloat16>(pooled)));
    if (table.open_begin() < first + size) ASSERT_TRUE(same_bits(open_sum.download(), sum));
    ASSERT_TRUE(device_open_keys.intact() && device_pooled.intact() && rounded_pooled.intact() &&
                rounded_open_keys.intact() && open_sum.intact());
    first += size;
  }
}

TYPED_TEST(ChunkKeysOf, PrefillInAnyBlocksHasTheCpusBits) {
  const std::vector<std::int32_t> sizes = {1, 1, 2, 7, 8, 9, 33, 64, 1, 100, 17};
  for (const std::int64_t row_size : {8, 1016, 1024, 1032}) {
    prefill_in_blocks<TypeParam>(this->stream_, this->seed(), row_size, KeyPooling::kMean, 260,
                                 sizes, 0.08);
    if (this->HasFatalFailure()) return;
  }
  prefill_in_blocks<TypeParam>(this->stream_, this->seed(), 64, KeyPooling::kEndToken, 260, sizes,
                               0.08);
  prefill_in_blocks<TypeParam>(this->stream_, this->seed(), 64, KeyPooling::kMean, 64, {32}, 1.0);
  prefill_in_blocks<TypeParam>(this->stream_, this->seed(), 64, KeyPooling::kMean, 64, {20}, 0.0);
}

TEST_F(ChunkKeysDecode, PrefillOfABook) {
  prefill_in_blocks<__nv_bfloat16>(stream_, seed(), 16, KeyPooling::kMean, 120000, {120000}, 0.04);
}

TEST_F(ChunkKeysDecode, PoolingInAGraphAndOnTwoStreams) {
  std::mt19937_64 random(seed());
  constexpr std::int32_t kRows = 1000;
  constexpr std::int32_t kRow = 1024;
  const DeviceBuffer<__half> rows(rounded<__half>(random_values(random, kRows * kRow)));
  std::vector<std::int32_t> chunk_ends;
  for (std::int32_t end = 13; end <= kRows; end += 13) chunk_ends.push_back(end);
  const auto num_chunks = static_cast<std::int32_t>(chunk_ends.size());
  const DeviceBuffer<std::int32_t> ends(chunk_ends);
  const DeviceBuffer<std::int32_t> counts(std::vector<std::int32_t>{num_chunks});
  std::vector<DeviceBuffer<float>> sums;
  std::vector<DeviceBuffer<float>> pooled;
  for (int i = 0; i < 3; ++i) {
    sums.emplace_back(at(kRow));
    pooled.emplace_back(at(num_chunks * kRow));
  }
  const auto args_of = [&](std::size_t i) {
    PoolChunksArgs<__half> args;
    args.block.rows = rows.data();
    args.block.row_stride = kRow;
    args.block.num_rows = kRows;
    args.block.row_size = kRow;
    args.block.table = {ends.data(), counts.data(), 1, num_chunks};
    args.num_new_chunks = num_chunks;
    args.open_sum = sums[i].data();
    args.maybe_pooled = pooled[i].data();
    return args;
  };
  launch_three_ways(
      [&](std::size_t i, cudaStream_t s) { return launch_pool_chunks(args_of(i), s); });
  for (std::size_t i = 1; i < 3; ++i) {
    EXPECT_TRUE(same_bits(pooled[i].download(), pooled[0].download()));
    EXPECT_TRUE(same_bits(sums[i].download(), sums[0].download()));
  }
  EXPECT_FALSE(std::isnan(sums[0].download()[0]));
}

template <typename Row, typename Out>
void gather(cudaStream_t stream, std::uint64_t seed, std::int64_t row_size) {
  std::mt19937_64 random(seed);
  constexpr std::int64_t kRows = 11;
  constexpr std::int32_t kBase = 100;
  const std::int64_t stride = row_size + 8;
  const std::vector<Row> rows = rounded<Row>(random_values(random, kRows * stride));
  const std::vector<std::int32_t> indices = {110, 100, 105, 105, -1, 99, 111, 103};
  std::vector<float> expected;
  for (const std::int32_t index : indices) {
    const std::int64_t row = index - kBase;
    for (std::int64_t i = 0; i < row_size; ++i) {
      expected.push_back(row < 0 || row >= kRows ? 0.0F : widened(rows[at(row * stride + i)]));
    }
  }
  const DeviceBuffer<Row> device_rows(rows);
  const DeviceBuffer<std::int32_t> device_indices(indices);
  const DeviceBuffer<Out> out(expected.size());
  GatherRowsArgs<Row, Out> args;
  args.rows = device_rows.data();
  args.row_stride = stride;
  args.num_rows = kRows;
  args.row_size = static_cast<std::int32_t>(row_size);
  args.indices = device_indices.data();
  args.num_indices = static_cast<std::int32_t>(indices.size());
  args.index_base = kBase;
  args.out = out.data();
  ASSERT_TRUE(succeeds(launch_gather_rows(args, stream)));
  EXPECT_TRUE(same_bits(out.download(), rounded<Out>(expected)));
  EXPECT_TRUE(out.intact());
}

TYPED_TEST(ChunkKeysOf, RowsAreGatheredByIndex) {
  for (const std::int64_t row_size : {8, 1024, 1032}) {
    gather<TypeParam, float>(this->stream_, this->seed(), row_size);
    gather<TypeParam, TypeParam>(this->stream_, this->seed(), row_size);
  }
}

// --- refusals ------------------------------------------------------------------------------------

void expect_refused(const Status& status, const std::string& word) {
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
}

TEST(ChunkKeysRefusals, DecodeNamesWhatIsExpected) {
  alignas(16) float memory[64] = {};
  std::int32_t ints[8] = {};
  UpdateChunkKeysArgs<float, float> good;
  EXPECT_TRUE(launch_update_chunk_keys(good, nullptr).ok());  // nothing to do
  good.num_layers = 2;
  good.row_size = 8;
  good.key_size = 8;
  good.table = {ints, ints, 1, 1};
  good.num_tokens = ints;
  good.rows = memory;
  good.row_layer_stride = 8;
  good.open_sums = memory;
  good.sum_layer_stride = 8;
  good.keys = memory;
  good.key_layer_stride = 8;
  auto args = good;
  args.row_size = 12;
  expect_refused(launch_update_chunk_keys(args, nullptr), "multiple of 8");
  args = good;
  args.key_size = 4;
  expect_refused(launch_update_chunk_keys(args, nullptr), "key_size");
  args = good;
  args.rows = memory + 1;
  expect_refused(launch_update_chunk_keys(args, nullptr), "16 bytes");
  args = good;
  args.row_layer_stride = 9;
  expect_refused(launch_update_chunk_keys(args, nullptr), "16 bytes");
  args = good;
  args.key_layer_stride = 4;
  expect_refused(launch_update_chunk_keys(args, nullptr), "key_layer_stride");
  args = good;
  args.table.num_seqs = 2;
  args.sum_layer_stride = args.key_layer_stride = 16;
  args.row_seq_stride = 4;
  expect_refused(launch_update_chunk_keys(args, nullptr), "row_seq_stride");
  args.row_seq_stride = 8;
  args.maybe_triggers = ints;
  args.queries = memory;
  args.maybe_query_rows = memory;
  args.num_query_features = 8;
  args.query_seq_stride = 4;
  expect_refused(launch_update_chunk_keys(args, nullptr), "query_seq_stride");
  args.query_seq_stride = 10;
  expect_refused(launch_update_chunk_keys(args, nullptr), "16 bytes");
  args = good;
  args.num_query_features = 8;
  expect_refused(launch_update_chunk_keys(args, nullptr), "triggers");
  args = good;
  args.maybe_null_weight = memory;
  expect_refused(launch_update_chunk_keys(args, nullptr), "null weights");
  args = good;
  args.maybe_open_keys = memory;
  expect_refused(launch_update_chunk_keys(args, nullptr), "open keys");
  args = good;
  args.keys = nullptr;
  expect_refused(launch_update_chunk_keys(args, nullptr), "null");
}

TEST(ChunkKeysRefusals, PrefillNamesWhatIsExpected) {
  alignas(16) float memory[64] = {};
  std::int32_t ints[8] = {};
  PoolChunksArgs<float> good;
  good.block.rows = memory;
  good.block.row_stride = 8;
  good.block.num_rows = 2;
  good.block.row_size = 8;
  good.block.table = {ints, ints, 1, 1};
  good.num_new_chunks = 1;
  good.open_sum = memory;
  auto args = good;
  args.block.num_rows = 0;
  args.num_new_chunks = 0;
  EXPECT_TRUE(launch_pool_chunks(args, nullptr).ok());  // nothing to do
  args = good;
  args.num_new_chunks = 2;
  expect_refused(launch_pool_chunks(args, nullptr), "chunks");
  args = good;
  args.block.row_size = 6;
  expect_refused(launch_pool_chunks(args, nullptr), "multiple of 8");
  args = good;
  args.block.row_stride = 4;
  expect_refused(launch_pool_chunks(args, nullptr), "row_stride");
  args = good;
  args.maybe_pooled = memory + 2;
  expect_refused(launch_pool_chunks(args, nullptr), "16 bytes");
  args = good;
  args.block.seq = 1;
  expect_refused(launch_pool_chunks(args, nullptr), "sequence");
  args = good;
  args.open_sum = nullptr;
  expect_refused(launch_pool_chunks(args, nullptr), "open_sum");

  OpenKeysArgs<float> open;
  open.block = good.block;
  EXPECT_TRUE(launch_open_keys_at_triggers(open, nullptr).ok());
  open.num_triggers = 1;
  expect_refused(launch_open_keys_at_triggers(open, nullptr), "triggers");
  GatherRowsArgs<float> rows;
  rows.row_size = 8;
  EXPECT_TRUE(launch_gather_rows(rows, nullptr).ok());
  rows.num_indices = 1;
  expect_refused(launch_gather_rows(rows, nullptr), "indices");
}

}  // namespace
}  // namespace chunkllm::kernels
