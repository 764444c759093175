// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/rms_norm.cuh"

/// The parts of `matrix_vector.cuh`: shape, arguments, and how weights come in.
namespace chunkllm::kernels {

/// The shape of the product's work, in one place.
///
/// Tensor cores multiply 16 weight rows by 8 columns, which are the rows of x: the arithmetic of
/// one row costs what that of eight does, and either is far below the time of the weights' bytes,
/// while plain multiply-adds would fill the issue slots at eight rows. A column never meets
/// another, so a row's bits do not depend on the rows beside it.
struct MatrixVectorShape {
  /// The eight warps of a block split k: 4096 outputs are 256 tiles of 16, too few for 132
  /// multiprocessors if each were one warp's. Equal to the norm's threads, which the prologue runs.
  static constexpr int kThreads = kNormThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kTileRows = 16;
  /// A stage of a warp's ring holds 64 values of k, a 128 byte line, of each row of a tile; the
  /// warps' stages lie side by side, 512 values a round.
  static constexpr int kStageK = 64;
  static constexpr int kRoundK = kWarps * kStageK;
  static constexpr int kVectorK = 8;  ///< values in 16 bytes
  static constexpr int kRowBytes = kStageK * 2;
  static constexpr int kTileBytes = kTileRows * kRowBytes;
  /// Sums of a column: 16, padded so that the quads of a warp write to different banks.
  static constexpr int kColumnStride = 20;
  static constexpr int kMaxRows = 16;  ///< two column tiles
  /// The fused norm: every block norms all rows again, 4 bytes a value from L2. At two rows of 4096
  /// that is 4.3 MB for the smallest product's 33.5 MB of weights; above, a launch costs less.
  static constexpr int kMaxNormRows = 2;
  /// Normed rows must leave room for the ring, on sm_80 too.
  static constexpr std::size_t kMaxNormedBytes = 64 * 1024;
  /// Up to here x is a small part of the bytes however often it is read.
  static constexpr int kMaxUnsharedRows = 2;
  /// Tiles a block from which on it pays to hold x in shared memory: a copy in front of all work.
  static constexpr int kMinStagedTiles = 4;
};

/// Where the kernel reads x.
enum class VectorInput : std::uint8_t {
  kGlobal,  ///< in place, through L1 and L2
  kStaged,  ///< from a copy in shared memory
  kNormed   ///< from shared memory, where the block has normed `hidden`
};

/// An instance of the kernel.
///
/// \tparam kColumnTiles  eight rows of x each
/// \tparam kRowTiles     tiles of 16 weight rows that share a read of x
template <int kColumnTiles, int kRowTiles, VectorInput kInput>
struct MatrixVectorPlan {
  using Shape = MatrixVectorShape;
  static constexpr int kColumns = kColumnTiles * 8;
  /// A launch has one block a multiprocessor; up to eight rows they leave room for the next
  /// product's, which fills its ring beside them.
  static constexpr int kResidentBlocks = kColumnTiles == 1 ? 2 : 1;
  /// All but one are on their way: 64 KB a multiprocessor, where bandwidth times latency asks for
  /// some 35 KB; less only beside 16 staged rows.
  static constexpr int kStages = kRowTiles == 2 ? 3 : kColumnTiles == 2 ? 4 : 5;
  static constexpr int kStageBytes = kRowTiles * Shape::kTileBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  /// Sums of a tile of 16 rows: [kWarps, kColumns, kColumnStride].
  static constexpr int kSums = Shape::kWarps * kColumns * Shape::kColumnStride;
  /// With two sets a tile's sums are read while the next one's are written, one barrier a tile.
  static constexpr int kSumSets = kRowTiles == 2 ? 1 : 2;
  static constexpr int kFixedBytes =
      Shape::kWarps * kRingBytes + kSumSets * kSums * static_cast<int>(sizeof(float));
};

/// What becomes of a sum.
enum class Epilogue : std::uint8_t {
  kStore,     ///< y = sum (+ bias), rounded to T
  kStoreF32,  ///< y_f32 = sum (+ bias)
  kAddF32,    ///< y_f32 += sum (+ bias): a residual stream
  kSiluGate   ///< y[i] = silu(sum_i) * sum_(i + inner), biases first; inner = num_outputs / 2
};

/// What `launch_matrix_vector` reads and writes. Give either `x`, or `hidden` and `norm_weight`.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
struct MatrixVectorArgs {
  const T* weight = nullptr;          ///< [num_outputs, k], dense
  const float* maybe_bias = nullptr;  ///< [num_outputs]
  std::int32_t num_outputs = 0;
  std::int32_t k = 0;         ///< a multiple of 8
  std::int32_t num_rows = 0;  ///< at most 16; with a norm, see `can_fuse_norm`

  /// Strides of 0 stand for rows side by side.
  const T* x = nullptr;  ///< [num_rows, k]
  std::int64_t x_stride = 0;

  const float* hidden = nullptr;  ///< [num_rows, k]: x is its RMSNorm; not an output of the launch
  std::int64_t hidden_stride = 0;
  const float* norm_weight = nullptr;  ///< [k]
  float eps = 0.0F;
  T* maybe_normed = nullptr;  ///< [num_rows, k], dense: x as multiplied, for others to read

  Epilogue epilogue = Epilogue::kStore;
  T* y = nullptr;  ///< [num_rows, num_outputs], with kSiluGate [num_rows, num_outputs / 2]
  std::int64_t y_stride = 0;
  float* y_f32 = nullptr;  ///< [num_rows, num_outputs]
  std::int64_t y_f32_stride = 0;

  /// Begins before the kernel in front has ended, where the device can; the weights and the norm's
  /// must be constant then. False: where the kernel in front writes them.
  bool overlaps = true;
  /// Takes so much shared memory that no SM gets two blocks: behind a kernel that fills the SMs,
  /// the first one to come free would else start two while another stays idle.
  bool one_block_an_sm = false;
};

/// Elements from one staged row to the next: an odd multiple of 64 bytes, so that the rows of two
/// neighbouring columns lie in different banks.
__host__ __device__ inline std::int64_t staged_stride(std::int32_t k) {
  return ceil_div<std::int64_t>(k, 64) * 64 + 32;
}

/// Whether the product takes the norm of that many rows of `k` values on itself.
///
/// \param shared_bytes  of a block of the device, at most: cudaDevAttrMaxSharedMemoryPerBlockOptin
inline bool can_fuse_norm(std::int32_t num_rows, std::int32_t k, int shared_bytes) {
  using Plan = MatrixVectorPlan<1, 1, VectorInput::kNormed>;
  const std::int64_t normed_bytes = num_rows * staged_stride(k) * 2;
  return num_rows <= MatrixVectorShape::kMaxNormRows &&
         normed_bytes <= static_cast<std::int64_t>(MatrixVectorShape::kMaxNormedBytes) &&
         Plan::kFixedBytes + normed_bytes <= shared_bytes;
}

/// A warp's ring of weights in shared memory: its share of k of one tile after the other.
///
/// A row's 16 byte pieces keep their place in even rows and change halves in odd ones: the pieces
/// that eight lanes read together lie in different banks. Which of 32 values of k meet in one lane
/// is the same for weights and x, so the order that tensor cores have for k does not matter.
///
/// \tparam kRowTiles  of 16 rows   \tparam kStages  of the ring
template <typename T, int kRowTiles, int kStages>
class WeightRing {
 public:
  using Shape = MatrixVectorShape;
  static constexpr int kStageBytes = kRowTiles * Shape::kTileBytes;

  __device__ WeightRing(const MatrixVectorArgs<T>& args, unsigned char* ring)
      : weight_(args.weight),
        ring_(ring),
        k_(args.k),
        gated_(args.epilogue == Epilogue::kSiluGate),
        num_outputs_(gated_ ? args.num_outputs / 2 : args.num_outputs),
        lane_row_(static_cast<int>(threadIdx.x) % kWarpSize / kPieces),
        lane_k_(static_cast<int>(threadIdx.x) / kWarpSize * Shape::kStageK +
                static_cast<int>(threadIdx.x) % kPieces * Shape::kVectorK),
        lane_address_(shared_address(ring) + lane_row_ * Shape::kRowBytes +
                      (static_cast<int>(threadIdx.x) % kPieces ^ lane_row_ % 2 * 4) * 16),
        tile_(static_cast<int>(blockIdx.x)) {}

  /// Outputs of 16 rows: with a gate they are 8 gates and the 8 values they gate.
  [[nodiscard]] __device__ int outputs_per_tile() const {
    return gated_ ? Shape::kTileRows / 2 : Shape::kTileRows;
  }
  [[nodiscard]] __device__ int num_outputs() const { return num_outputs_; }
  /// Steps of `kRowTiles` tiles.
  [[nodiscard]] __device__ int num_tiles() const {
    return ceil_div(num_outputs_, outputs_per_tile() * kRowTiles);
  }
  [[nodiscard]] __device__ int num_rounds() const { return ceil_div(k_, Shape::kRoundK); }

  /// Sends all stages but one on their way.
  __device__ void start() {
    for (int s = 0; s + 1 < kStages; ++s) fill_next();
  }
  /// Waits for the oldest stage, and fills the one read before it.
  __device__ void turn() {
    wait_async<kStages - 2>();
    __syncwarp();  // the stage is there for all lanes, and all have left the one before
    fill_next();
  }
  /// 16 bytes of row `row` of a tile of the stage that `turn` waited for.
  [[nodiscard]] __device__ uint4 read(int row_tile, int row, int piece) const {
    const int place =
        row_tile * Shape::kTileBytes + row * Shape::kRowBytes + (piece ^ row % 2 * 4) * 16;
    return *reinterpret_cast<const uint4*>(ring_ + stage_ * kStageBytes + place);
  }
  __device__ void leave() { stage_ = next_of(stage_); }

 private:
  static constexpr int kPieces = Shape::kRowBytes / 16;
  static constexpr int kRowsACopy = kWarpSize / kPieces;

  __device__ static int next_of(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }

  __device__ void fill_next() {
    if (tile_ < num_tiles()) {
      const int k = round_ * Shape::kRoundK + lane_k_;
      const std::uint32_t address =
          lane_address_ + static_cast<std::uint32_t>(free_stage_ * kStageBytes);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int i = 0; i < Shape::kTileRows / kRowsACopy; ++i) {
          const int row = i * kRowsACopy + lane_row_;
          const bool is_upper = i >= Shape::kTileRows / kRowsACopy / 2;
          const int output = (tile_ * kRowTiles + r) * outputs_per_tile() +
                             (gated_ && is_upper ? row - Shape::kTileRows / 2 : row);
          const int weight_row = output + (gated_ && is_upper ? num_outputs_ : 0);
          const bool valid = output < num_outputs_ && k < k_;
          const T* source =
              valid ? weight_ + static_cast<std::int64_t>(weight_row) * k_ + k : weight_;
          copy_async_16(address + r * Shape::kTileBytes + i * kRowsACopy * Shape::kRowBytes, source,
                        valid);
        }
      }
      if (++round_ == num_rounds()) {
        round_ = 0;
        tile_ += static_cast<int>(gridDim.x);
      }
    }
    commit_async();  // an empty group where nothing is left: they are counted
    free_stage_ = next_of(free_stage_);
  }

  const T* weight_;
  const unsigned char* ring_;
  int k_;
  bool gated_;
  int num_outputs_;
  int lane_row_;
  int lane_k_;
  std::uint32_t lane_address_;
  int tile_;            // of the next copies
  int round_ = 0;       // of the next copies
  int free_stage_ = 0;  // of the next copies
  int stage_ = 0;       // that is read
};

}  // namespace chunkllm::kernels
