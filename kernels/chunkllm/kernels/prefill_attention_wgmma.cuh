// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/kernels/prefill_attention_common.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/wgmma.cuh"

/// Chunk prefill attention for Hopper: warp-specialised, scores and outputs by wgmma.
///
/// After FlashAttention-3 (J. Shah et al., 2024): a warpgroup that only copies feeds two that
/// compute 64 rows each; a warpgroup starts the scores of the next keys before the outputs of the
/// last, so that its softmax runs beside a product, and the two take turns at the matrix units.
/// Unlike there keys come one by one through the set's token list, so copies are cp.async of 16
/// bytes rather than bulk tensor copies, which need boxes.
namespace chunkllm::kernels {
namespace prefill {

template <int kHeadDim>
struct WgmmaShape {
  static constexpr int kGroupThreads = 128;  // a warpgroup
  static constexpr int kThreads = 3 * kGroupThreads;
  static constexpr int kGroupRows = 64;  // of one product
  static constexpr int kRows = 2 * kGroupRows;
  static constexpr int kKeys = 128;
  // Two would do for keys that arrive in time; gathered ones may take longer than one round.
  static constexpr int kStages = 3;
  static constexpr int kQueryBytes = tile_bytes(kRows, kHeadDim);
  static constexpr int kKeyBytes = tile_bytes(kKeys, kHeadDim);
  static constexpr int kPanelBytes = kKeys * kPanelRowBytes;
  // 1023 bytes at most to start at a multiple of 1024, which the swizzle asks for.
  static constexpr int kSharedBytes = kQueryBytes + 2 * kStages * kKeyBytes + 1024;
  static_assert(kSharedBytes + 1024 <= 227 * 1024);
  // The compiler gives each of the 384 threads 168 registers; together these are no more.
  static constexpr int kProducerRegisters = 56;
  static constexpr int kConsumerRegisters = 224;
  static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * 168);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Barriers of a ring of stages, in static shared memory.
template <int kStages>
struct WgmmaBarriers {
  std::uint64_t keys_full[kStages];
  std::uint64_t keys_empty[kStages];
  std::uint64_t values_full[kStages];
  std::uint64_t values_empty[kStages];
};

/// A place in a ring of stages and the parity of its barriers there.
template <int kStages>
struct RingPlace {
  std::uint32_t stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <typename T, int kHeadDim>
class WgmmaBlock {
  using Shape = WgmmaShape<kHeadDim>;
  using Place = RingPlace<Shape::kStages>;
  static constexpr int kKeys = Shape::kKeys;
  static constexpr int kRows = Shape::kRows;
  static constexpr int kStages = Shape::kStages;
  // Named barriers: whose turn it is at the matrix units, a warpgroup alone.
  static constexpr int kTurnOf = 1;
  static constexpr int kGroup = 3;
  static constexpr int kProducer = 5;

 public:
  using Barriers = WgmmaBarriers<kStages>;

  __device__ WgmmaBlock(const PrefillAttentionArgs<T>& args, const QueryBlock& block,
                        unsigned char* shared, Barriers& barriers)
      : args_(args),
        block_(block),
        shared_(shared),
        barriers_(barriers),
        thread_(static_cast<int>(threadIdx.x) % Shape::kGroupThreads),
        tiles_(key_tiles<kKeys>(block, args.window)) {}

  /// Called by all threads before their roles; the caller synchronises.
  __device__ void init_barriers() const {
    if (threadIdx.x != 0) return;
    const int consumers = 4 * num_consumers();  // a lane of each warp
    for (int s = 0; s < kStages; ++s) {
      init_barrier(shared_address(&barriers_.keys_full[s]), Shape::kGroupThreads);
      init_barrier(shared_address(&barriers_.values_full[s]), Shape::kGroupThreads);
      init_barrier(shared_address(&barriers_.keys_empty[s]), consumers);
      init_barrier(shared_address(&barriers_.values_empty[s]), consumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  /// Warpgroups that have rows.
  __device__ int num_consumers() const { return block_.num_pairs > Shape::kGroupRows ? 2 : 1; }

  /// The copying warpgroup. A tile's keys and its values are a group of copies each. Mostly a group
  /// announces itself when it is complete. Keys that must be turned are announced when the second
  /// group behind them has been started, which leaves two on their way meanwhile.
  __device__ void produce() const {
    const bool turn = turns_keys(args_);
    Place place;
    place.parity = 1;  // fresh stages are empty
    std::uint32_t last_stage = 0;
    // A token's number is asked for two rounds before it is needed, its place one round.
    std::int64_t start = key_start(key_token(tiles_.first));
    std::int32_t token = key_token(tiles_.first + 1);
    for (std::int32_t tile = tiles_.first; tile < tiles_.end; ++tile) {
      const std::int64_t next_start = key_start(token);
      token = key_token(tile + 2);
      wait(shared_address(&barriers_.keys_empty[place.stage]), place.parity);
      copy(args_.kv.keys, start, keys_at(place.stage));
      if (!turn) {
        arrive_behind_copies(shared_address(&barriers_.keys_full[place.stage]));
      } else if (tile > tiles_.first) {
        wait_async<2>();
        turn_and_announce(tile - 1, last_stage);
      }
      wait(shared_address(&barriers_.values_empty[place.stage]), place.parity);
      copy(args_.kv.values, start, values_at(place.stage));
      arrive_behind_copies(shared_address(&barriers_.values_full[place.stage]));
      last_stage = place.stage;
      place.advance();
      start = next_start;
    }
    if (turn) {
      wait_async<1>();
      turn_and_announce(tiles_.end - 1, last_stage);
    }
    wait_async<0>();
  }

  /// A computing warpgroup: 0 or 1.
  __device__ void consume(int group) const {
    const int lane = thread_ % kWarpSize;
    const std::int32_t group_pair = group * Shape::kGroupRows;
    const std::int32_t first_pair = group_pair + thread_ / kWarpSize * 16;  // of the warp
    const bool take_turns = num_consumers() == 2;
    load_queries<kHeadDim, kRows, Shape::kGroupThreads, Shape::kGroupRows>(
        args_, block_, group_pair, shared_, thread_);
    fence_for_products();
    sync_named(kGroup + group, Shape::kGroupThreads);

    const float scale_log2 = args_.scale * args_.kv.key_scale * kLog2OfE;
    const VisibleRanks visible(block_, first_pair, lane, args_.window);
    const std::int32_t first_rank = block_.rank(group_pair);
    const std::int32_t last_rank =
        block_.rank(min(group_pair + Shape::kGroupRows - 1, block_.num_pairs - 1));
    const std::uint64_t queries =
        describe_rows(shared_address(shared_) + group_pair * kPanelRowBytes);
    const auto hide_some = [&](std::int32_t tile, float(&scores)[kKeys / 8][4]) {
      const std::int32_t rank = tile * kKeys;
      if (rank + kKeys - 1 > first_rank ||
          (args_.window > 0 && rank < last_rank - args_.window + 1)) {
        hide(scores, rank, lane, visible);
      }
    };

    float out[kHeadDim / 8][4] = {};
    float scores[kKeys / 8][4] = {};
    std::uint32_t weights[kKeys / 16][4];
    RowSoftmax softmax;
    float kept[2];
    Place keys;
    Place values;

    wait_for_copies(barriers_.keys_full[keys.stage], keys.parity);
    start_scores(queries, keys.stage, scores);
    commit_products();
    wait_products<0>();
    pin(scores);
    release(barriers_.keys_empty[keys.stage], lane);
    keys.advance();
    hide_some(tiles_.first, scores);
    softmax.update(scores, scale_log2, kept);  // nothing has been summed that `kept` could scale
    pack(scores, weights);

    if (take_turns && group == 1 && tiles_.first + 1 < tiles_.end) {
      arrive_named(kTurnOf + 0, 2 * Shape::kGroupThreads);
    }
    for (std::int32_t tile = tiles_.first + 1; tile < tiles_.end; ++tile) {
      // These values were on their way before these keys. With one fence for both in front of the
      // turn, the products of a turn start without a pause.
      wait(shared_address(&barriers_.values_full[values.stage]), values.parity);
      wait_for_copies(barriers_.keys_full[keys.stage], keys.parity);
      if (take_turns) sync_named(kTurnOf + group, 2 * Shape::kGroupThreads);
      start_scores(queries, keys.stage, scores);
      commit_products();
      start_outputs(weights, values.stage, out);
      commit_products();
      // No arrival is left over behind the last turn.
      if (take_turns && (group == 0 || tile + 1 < tiles_.end)) {
        arrive_named(kTurnOf + 1 - group, 2 * Shape::kGroupThreads);
      }
      wait_products<1>();
      pin(scores);
      hide_some(tile, scores);
      softmax.update(scores, scale_log2, kept);
      // The exponentials belong beside the product, yet the assembler would move them behind the
      // wait. An arrival stays where it is, and this one needs them; no sum is less than 0.
      if (!(softmax.sum[0] + softmax.sum[1] < 0.0F)) {
        release(barriers_.keys_empty[keys.stage], lane);
      }
      keys.advance();
      // Few of many tiles hold a new maximum; a factor of 1 changes no bit.
      const bool scales = __any_sync(kFullWarp, kept[0] != 1.0F || kept[1] != 1.0F) != 0;
      wait_products<0>();
      pin(out);
      pin(weights);
      release(barriers_.values_empty[values.stage], lane);
      values.advance();
      if (scales) scale_rows(out, kept);
      pack(scores, weights);
    }
    wait_for_copies(barriers_.values_full[values.stage], values.parity);
    start_outputs(weights, values.stage, out);
    commit_products();
    wait_products<0>();
    pin(out);
    // Rows leave by way of the queries' place, which no product of this warpgroup reads any more.
    sync_named(kGroup + group, Shape::kGroupThreads);
    write_rows<kHeadDim, kRows>(args_, block_, first_pair, out, softmax, shared_, lane);
  }

 private:
  __device__ std::uint32_t keys_at(std::uint32_t stage) const {
    return shared_address(shared_) + Shape::kQueryBytes + stage * Shape::kKeyBytes;
  }
  __device__ std::uint32_t values_at(std::uint32_t stage) const {
    return keys_at(stage) + kStages * Shape::kKeyBytes;
  }

  /// The token of this producer thread's key of a tile. Past the last key it is the last one again:
  /// hidden from all rows like any later key, and read where something stands.
  __device__ std::int32_t key_token(std::int32_t tile) const {
    return block_.token(min(tile * kKeys + thread_, block_.last_rank));
  }
  /// Where a token's key begins in the cache.
  __device__ std::int64_t key_start(std::int32_t token) const {
    return args_.kv.token_offset(args_.seq, token) + block_.kv_head * args_.kv.head_stride;
  }

  /// Starts to copy rows that begin where the threads' `start` says into a stage: a group of
  /// copies. A warp copies the rows of its own lanes, as many at a time as it has lanes for their
  /// 16-byte pieces.
  __device__ void copy(const T* source, std::int64_t start, std::uint32_t stage) const {
    constexpr int kPieces = kHeadDim / kPieceValues;
    constexpr int kRowsAtOnce = kWarpSize / kPieces;
    const int lane = thread_ % kWarpSize;
    const int piece = lane % kPieces;
    const T* from = source + piece * kPieceValues;
    const std::uint32_t to = stage + swizzled<kKeys>(thread_ - lane + lane / kPieces, piece);
#pragma unroll
    for (int r = 0; r < kWarpSize; r += kRowsAtOnce) {
      // Rows at once divide 8, so the swizzle of row r further on is one more XOR.
      copy_async_16((to ^ static_cast<std::uint32_t>(r % kPanelPieces * 16)) + r * kPanelRowBytes,
                    from + __shfl_sync(kFullWarp, start, r + lane / kPieces), true);
    }
    commit_async();
  }
  __device__ void turn_and_announce(std::int32_t tile, std::uint32_t stage) const {
    sync_named(kProducer, Shape::kGroupThreads);  // a key's pieces came by several threads
    turn_keys<kHeadDim, kKeys, Shape::kGroupThreads>(
        args_, block_, tile * kKeys, shared_ + Shape::kQueryBytes + stage * Shape::kKeyBytes,
        thread_);
    fence_for_products();
    arrive(shared_address(&barriers_.keys_full[stage]));
  }
  /// Waits for a full stage. Copies that announce themselves pass no fence on their way to wgmma,
  /// so it stands here, on the side that waits.
  static __device__ void wait_for_copies(std::uint64_t& barrier, std::uint32_t parity) {
    wait(shared_address(&barrier), parity);
    fence_for_products();
  }
  static __device__ void release(std::uint64_t& barrier, int lane) {
    if (lane == 0) arrive(shared_address(&barrier));
  }

  /// scores = queries . keys. 16 dimensions are 32 bytes of a row, 64 are a panel.
  __device__ void start_scores(std::uint64_t queries, std::uint32_t stage,
                               float (&scores)[kKeys / 8][4]) const {
    const std::uint64_t keys = describe_rows(keys_at(stage));
    pin(scores);
    fence_products();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const std::uint32_t in_row = step % 4 * 32;
      multiply_rows<T>(scores, advance(queries, step / 4 * (kRows * kPanelRowBytes) + in_row),
                       advance(keys, step / 4 * Shape::kPanelBytes + in_row), step > 0 ? 1 : 0);
    }
  }

  /// out += weights . values. 16 keys are two atoms of 8 rows.
  __device__ void start_outputs(std::uint32_t (&weights)[kKeys / 16][4], std::uint32_t stage,
                                float (&out)[kHeadDim / 8][4]) const {
    const std::uint64_t values = describe_columns(values_at(stage), Shape::kPanelBytes);
    pin(out);
    pin(weights);
    fence_products();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      multiply_columns<T>(out, weights[step], advance(values, step * 16 * kPanelRowBytes));
    }
  }

  /// Weights as the left operand of the next product: where they are, two blocks of 8 keys make the
  /// operand of 16.
  static __device__ void pack(const float (&scores)[kKeys / 8][4],
                              std::uint32_t (&weights)[kKeys / 16][4]) {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&w)[4] = scores[2 * step + i / 2];
        weights[step][i] = Element<T>::pack(w[i % 2 * 2], w[i % 2 * 2 + 1]);
      }
    }
  }

  const PrefillAttentionArgs<T>& args_;
  const QueryBlock& block_;
  unsigned char* shared_;
  Barriers& barriers_;
  int thread_;  // in its warpgroup
  KeyTiles tiles_;
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace prefill

/// Empty unless compiled for sm_90a; `wgmma_is_possible` knows by the static shared memory, which
/// holds the barriers.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(prefill::WgmmaShape<kHeadDim>::kThreads, 1)
    prefill_attention_wgmma_kernel(const __grid_constant__ PrefillAttentionArgs<T> args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = prefill::WgmmaShape<kHeadDim>;
  extern __shared__ __align__(1024) unsigned char prefill_wgmma_shared[];
  __shared__ typename prefill::WgmmaBlock<T, kHeadDim>::Barriers barriers;
  prefill::QueryBlock block;
  if (!prefill::find_query_block<Shape::kRows>(args, block)) return;
  const std::uint32_t past = shared_address(prefill_wgmma_shared) % 1024;
  unsigned char* shared = prefill_wgmma_shared + (past == 0 ? 0 : 1024 - past);
  const prefill::WgmmaBlock<T, kHeadDim> work(args, block, shared, barriers);
  work.init_barriers();
  __syncthreads();
  const int role = static_cast<int>(threadIdx.x) / Shape::kGroupThreads;
  if (role == 0) {
    shrink_registers<Shape::kProducerRegisters>();
    work.produce();
  } else {
    grow_registers<Shape::kConsumerRegisters>();
    if (role <= work.num_consumers()) work.consume(role - 1);
  }
#endif
}

namespace prefill {

/// May the kernel run here: on capability 9.0 (code for sm_90a is for no other), with the code
/// built for it?
template <typename T, int kHeadDim>
Status wgmma_is_built(bool& built) {
  cudaFuncAttributes attributes = {};
  CHUNKLLM_RETURN_IF_ERROR(cuda::cuda_status(
      cudaFuncGetAttributes(&attributes, prefill_attention_wgmma_kernel<T, kHeadDim>),
      "prefill_attention_wgmma_kernel: attributes"));
  built = attributes.sharedSizeBytes > 0;
  return {};
}
template <typename T>
Status wgmma_is_possible(const PrefillAttentionArgs<T>& args, bool& possible) {
  possible = false;
  if (args.head_dim != 64 && args.head_dim != 128) return {};
  CHUNKLLM_ASSIGN_OR_RETURN(const int major,
                            cuda::device_attribute(cudaDevAttrComputeCapabilityMajor));
  CHUNKLLM_ASSIGN_OR_RETURN(const int minor,
                            cuda::device_attribute(cudaDevAttrComputeCapabilityMinor));
  if (major != 9 || minor != 0) return {};
  return args.head_dim == 64 ? wgmma_is_built<T, 64>(possible) : wgmma_is_built<T, 128>(possible);
}

template <typename T, int kHeadDim>
Status launch_wgmma(const PrefillAttentionArgs<T>& args, cudaStream_t stream) {
  return launch_blocks<WgmmaShape<kHeadDim>>(
      "prefill_attention_wgmma_kernel", prefill_attention_wgmma_kernel<T, kHeadDim>, args, stream);
}
template <typename T>
Status launch_wgmma(const PrefillAttentionArgs<T>& args, cudaStream_t stream) {
  return args.head_dim == 64 ? launch_wgmma<T, 64>(args, stream)
                             : launch_wgmma<T, 128>(args, stream);
}

}  // namespace prefill
}  // namespace chunkllm::kernels
