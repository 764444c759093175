// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/kernels/batch_state.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/embed_tokens.cuh"
#include "chunkllm/kernels/matrix_vector.cuh"
#include "chunkllm/kernels/next_token.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/rope_store.cuh"
#include "cuda/support/device.hpp"
#include "support/random_values.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::rounded;
using testing::succeeds;
using testing::uniform_values;
using testing::widened;
using T = __nv_bfloat16;

constexpr std::int32_t kHidden = 512;
constexpr std::int32_t kInner = 1536;
constexpr std::int32_t kHeads = 8;
constexpr std::int32_t kKvHeads = 2;
constexpr std::int32_t kHeadDim = 64;
constexpr std::int32_t kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr std::int32_t kKvSize = kKvHeads * kHeadDim;
constexpr std::int32_t kVocab = 9000;  // enough tiles for x to be staged
constexpr std::int32_t kLayers = 3;
constexpr std::int32_t kTokens = 200;

DeviceBuffer<T> weights(std::int32_t outputs, std::int32_t features, std::uint64_t seed) {
  return DeviceBuffer<T>(
      rounded<T>(uniform_values(static_cast<std::size_t>(outputs) * features, seed,
                                1.7F / std::sqrt(static_cast<float>(features)))));
}

/// A decode step without attention: the kernels of a chain, all on the same few buffers, that write
/// what others still read two launches before. Keys of all steps stay in the cache.
class Chain {
 public:
  /// How the launches of a step are kept apart.
  enum class Order : std::uint8_t { kOverlapping, kSerial };

  explicit Chain(std::int32_t rows)
      : rows_(rows),
        count_(static_cast<std::size_t>(rows)),
        hidden_(count_ * kHidden),
        normed_(count_ * kHidden),
        qkv_buffer_(count_ * kQkv),
        queries_(count_ * kHeads * kHeadDim),
        activated_(count_ * kInner),
        logits_(count_ * kVocab),
        keys_(std::vector<T>(count_ * kTokens * kKvSize)),
        values_(std::vector<T>(count_ * kTokens * kKvSize)),
        tokens_(std::vector<std::int32_t>(count_)),
        likeliest_(std::vector<std::int32_t>(count_)),
        num_tokens_(std::vector<std::int32_t>(count_)),
        step_tokens_(std::vector<std::int32_t>(count_)),
        active_(std::vector<std::uint8_t>(count_, 1)) {
    restart();
  }

  void restart() {
    std::vector<std::int32_t> first;
    for (std::int32_t r = 0; r < rows_; ++r) first.push_back(17 + 101 * r);
    tokens_.upload(first);
    num_tokens_.upload(std::vector<std::int32_t>(count_));
    keys_.upload(std::vector<T>(count_ * kTokens * kKvSize));
    values_.upload(std::vector<T>(count_ * kTokens * kKvSize));
  }

  Status step(cudaStream_t stream, Order order) const {
    const auto done = [&](Status status) -> Status {
      if (!status.ok() || order == Order::kOverlapping) return status;
      return cuda::cuda_status(cudaStreamSynchronize(stream), "a kernel of the chain");
    };
    CHUNKLLM_RETURN_IF_ERROR(done(launch_advance_tokens(num_tokens_.data(), active_.data(), kTokens,
                                                        step_tokens_.data(), rows_, stream)));
    EmbedTokensArgs<T> embed;
    embed.embedding = embedding_.data();
    embed.vocab_size = kVocab;
    embed.hidden_size = kHidden;
    embed.tokens = tokens_.data();
    embed.num_rows = rows_;
    embed.hidden = hidden_.data();
    embed.hidden_stride = kHidden;
    CHUNKLLM_RETURN_IF_ERROR(done(launch_embed_tokens(embed, stream)));
    for (int layer = 0; layer < kLayers; ++layer) {
      MatrixVectorArgs<T> project = product(qkv_weight_, kQkv, kHidden);
      project.y = qkv_buffer_.data();
      project.y_stride = kQkv;
      CHUNKLLM_RETURN_IF_ERROR(product_of_norm(project, stream, done));
      CHUNKLLM_RETURN_IF_ERROR(done(launch_rope_store(rope_store(), stream)));
      CHUNKLLM_RETURN_IF_ERROR(
          done(add_product(output_weight_, queries_.data(), kHeads * kHeadDim, stream)));
      MatrixVectorArgs<T> gate = product(gate_up_weight_, 2 * kInner, kHidden);
      gate.epilogue = Epilogue::kSiluGate;
      gate.y = activated_.data();
      gate.y_stride = kInner;
      CHUNKLLM_RETURN_IF_ERROR(product_of_norm(gate, stream, done));
      CHUNKLLM_RETURN_IF_ERROR(done(add_product(down_weight_, activated_.data(), kInner, stream)));
    }
    MatrixVectorArgs<T> head = product(embedding_, kVocab, kHidden);
    head.epilogue = Epilogue::kStoreF32;
    head.y_f32 = logits_.data();
    head.y_f32_stride = kVocab;
    CHUNKLLM_RETURN_IF_ERROR(product_of_norm(head, stream, done));
    NextTokenArgs<float> next;
    next.logits = logits_.data();
    next.logits_stride = kVocab;
    next.num_rows = rows_;
    next.vocab_size = kVocab;
    next.maybe_tokens = likeliest_.data();
    CHUNKLLM_RETURN_IF_ERROR(done(launch_next_token(next, stream)));
    return done(
        launch_take_tokens(likeliest_.data(), step_tokens_.data(), tokens_.data(), rows_, stream));
  }

  /// Everything that is left of all steps.
  struct Result {
    std::vector<float> keys, values, hidden, logits;
    std::vector<std::int32_t> tokens;
    bool operator==(const Result&) const = default;
  };
  [[nodiscard]] Result result() const {
    return {widened(keys_.download()), widened(values_.download()), hidden_.download(),
            logits_.download(), tokens_.download()};
  }
  [[nodiscard]] bool intact() const {
    return hidden_.intact() && normed_.intact() && qkv_buffer_.intact() && queries_.intact() &&
           activated_.intact() && logits_.intact() && keys_.intact() && values_.intact() &&
           tokens_.intact() && likeliest_.intact();
  }

 private:
  [[nodiscard]] MatrixVectorArgs<T> product(const DeviceBuffer<T>& weight, std::int32_t outputs,
                                            std::int32_t k) const {
    MatrixVectorArgs<T> args;
    args.weight = weight.data();
    args.num_outputs = outputs;
    args.k = k;
    args.num_rows = rows_;
    return args;
  }
  template <typename Done>
  Status product_of_norm(MatrixVectorArgs<T> args, cudaStream_t stream, const Done& done) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const int shared_bytes,
                              cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    if (can_fuse_norm(rows_, kHidden, shared_bytes)) {
      args.hidden = hidden_.data();
      args.hidden_stride = kHidden;
      args.norm_weight = norm_weight_.data();
      args.eps = 1e-5F;
    } else {
      RmsNormArgs<T> norm;
      norm.residual = hidden_.data();
      norm.residual_stride = kHidden;
      norm.weight = norm_weight_.data();
      norm.eps = 1e-5F;
      norm.normed = normed_.data();
      norm.normed_stride = kHidden;
      norm.num_rows = rows_;
      norm.size = kHidden;
      CHUNKLLM_RETURN_IF_ERROR(done(launch_rms_norm(norm, stream)));
      args.x = normed_.data();
      args.x_stride = kHidden;
    }
    return done(launch_matrix_vector(args, stream));
  }
  Status add_product(const DeviceBuffer<T>& weight, const T* x, std::int32_t k,
                     cudaStream_t stream) const {
    MatrixVectorArgs<T> args = product(weight, kHidden, k);
    args.x = x;
    args.x_stride = k;
    args.epilogue = Epilogue::kAddF32;
    args.y_f32 = hidden_.data();
    args.y_f32_stride = kHidden;
    return launch_matrix_vector(args, stream);
  }
  [[nodiscard]] RopeStoreArgs<T> rope_store() const {
    RopeStoreArgs<T> args;
    args.qkv = qkv_buffer_.data();
    args.qkv_stride = kQkv;
    args.num_rows = rows_;
    args.num_heads = kHeads;
    args.num_kv_heads = kKvHeads;
    args.head_dim = kHeadDim;
    args.num_tokens = step_tokens_.data();
    args.rope = {rope_.data(), kTokens};
    args.queries = queries_.data();
    args.kv.keys = keys_.data();
    args.kv.values = values_.data();
    args.kv.seq_stride = std::int64_t{kTokens} * kKvSize;
    args.kv.token_stride = kKvSize;
    args.kv.head_stride = kHeadDim;
    args.kv_capacity = kTokens;
    return args;
  }

  std::int32_t rows_;
  std::size_t count_;
  DeviceBuffer<T> embedding_ = weights(kVocab, kHidden, 1);
  DeviceBuffer<T> qkv_weight_ = weights(kQkv, kHidden, 2);
  DeviceBuffer<T> output_weight_ = weights(kHidden, kHeads* kHeadDim, 3);
  DeviceBuffer<T> gate_up_weight_ = weights(2 * kInner, kHidden, 4);
  DeviceBuffer<T> down_weight_ = weights(kHidden, kInner, 5);
  DeviceBuffer<float> norm_weight_{uniform_values(kHidden, 6)};
  DeviceBuffer<float> rope_{uniform_values(std::size_t{kTokens} * kHeadDim, 7)};
  DeviceBuffer<float> hidden_;
  DeviceBuffer<T> normed_;
  DeviceBuffer<T> qkv_buffer_;
  DeviceBuffer<T> queries_;
  DeviceBuffer<T> activated_;
  DeviceBuffer<float> logits_;
  DeviceBuffer<T> keys_;
  DeviceBuffer<T> values_;
  DeviceBuffer<std::int32_t> tokens_;
  DeviceBuffer<std::int32_t> likeliest_;
  DeviceBuffer<std::int32_t> num_tokens_;
  DeviceBuffer<std::int32_t> step_tokens_;
  DeviceBuffer<std::uint8_t> active_;
};

using DependentLaunch = testing::DeviceTest;

TEST_F(DependentLaunch, ChainsHaveTheBitsOfSerialKernels) {
  for (const std::int32_t rows : {1, 2, 5, 16}) {
    Chain chain(rows);
    for (int i = 0; i < kTokens; ++i) {
      ASSERT_TRUE(succeeds(chain.step(stream_, Chain::Order::kSerial)));
    }
    const Chain::Result serial = chain.result();
    ASSERT_NE(serial.keys.back(), 0.0F) << "the last step is in the cache";

    chain.restart();
    for (int i = 0; i < kTokens; ++i) {
      ASSERT_TRUE(succeeds(chain.step(stream_, Chain::Order::kOverlapping)));
    }
    EXPECT_TRUE(chain.result() == serial) << "in a stream, " << rows << " rows";

    chain.restart();
    replay_as_graph(
        [&](cudaStream_t stream) { return chain.step(stream, Chain::Order::kOverlapping); },
        kTokens);
    EXPECT_TRUE(chain.result() == serial) << "in a graph, " << rows << " rows";
    EXPECT_TRUE(chain.intact()) << rows << " rows";
  }
}

TEST_F(DependentLaunch, OverlapsOnDevicesThatCan) {
  const Result<int> major = cuda::device_attribute(cudaDevAttrComputeCapabilityMajor);
  ASSERT_TRUE(succeeds(major.status()));
  if (major.value() < 9) {
    EXPECT_FALSE(can_overlap(rms_norm_kernel<T>));
  }
  cudaFuncAttributes attributes = {};
  ASSERT_TRUE(succeeds(cudaFuncGetAttributes(&attributes, rms_norm_kernel<T>)));
  EXPECT_EQ(can_overlap(rms_norm_kernel<T>), major.value() >= 9 && attributes.ptxVersion >= 90);
}

}  // namespace
}  // namespace chunkllm::kernels
