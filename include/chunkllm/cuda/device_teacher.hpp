// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/decode_step.hpp"
#include "chunkllm/cuda/device_backbone.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_rope.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/chunk_mass.cuh"
#include "chunkllm/kernels/chunk_prefill_attention.cuh"
#include "chunkllm/kernels/pool_chunks.cuh"
#include "chunkllm/kernels/rope_store.cuh"
#include "chunkllm/model/rope.hpp"
#include "chunkllm/train/recent_reading.hpp"
#include "chunkllm/train/teacher_rows.hpp"

namespace chunkllm::cuda {

/// The largest sequence that a `DeviceTeacher` has room for.
struct DeviceTeacherLimits {
  std::int32_t max_tokens = 8192;
  std::int32_t max_chunks = 1024;
  std::int32_t max_triggers = 1024;  ///< that a token follows
};

/// `collect_teacher_rows` on the device: a sequence is read densely as one block, and each layer's
/// rows come to the host while the next layers run.
///
/// Everything is allocated by `create`. Of keys and values one layer's are held: nobody asks for
/// those of a layer that has been read. One thread at a time.
///
/// \tparam T  __half or __nv_bfloat16: type of weights, activations, keys and values
template <typename T>
class DeviceTeacher {
 public:
  /// \param backbone  must outlive the teacher
  /// Errors: kUnsupported for heads that the attention kernels do not know; kInvalidArgument for
  ///         limits out of range; kResourceExhausted, with the bytes that were asked for
  static Result<DeviceTeacher> create(const DeviceBackbone<T>& backbone,
                                      const DeviceTeacherLimits& limits) {
    CHUNKLLM_RETURN_IF_ERROR(DecodeStep<T>::check_shapes(backbone.config()));
    CHUNKLLM_RETURN_IF_ERROR(check_limits(limits));
    DeviceTeacher teacher(backbone, limits);
    const Status status = teacher.allocate();
    if (!status.ok()) return status.with_context("memory of a teacher");
    return Result<DeviceTeacher>(std::move(teacher));
  }

  [[nodiscard]] const DeviceTeacherLimits& limits() const { return limits_; }

  /// What the sequence teaches; see `collect_teacher_rows` for the arguments.
  ///
  /// \param input_budget  0: inputs of the dense reading. Else those of a second reading, in which
  ///                      tokens attend chunk 0 and the newest chunks up to this many tokens
  ///                      (`plan_recent_reading`): a question then has not seen what it asks for,
  ///                      as is so when a set is chosen for it
  /// Numerics: products of 16 bit values summed in f32, states rounded to T between them; inputs
  ///           are those that W_Q and W_K got, pooled in f32 as on the CPU. Two runs give the same
  ///           bits
  /// Errors:   those of `plan_teacher_rows`; kInvalidArgument for an id outside the vocabulary and
  ///           for more tokens, chunks or triggers than the limits; kDeviceError
  /// Cost:     a dense reading and one more product of queries and keys. No allocation on the
  ///           device; the host waits for a layer's copy only while two later layers are enqueued
  /// Test:     tests/cuda/test_device_teacher.cu
  Result<TeacherRows> collect(std::span<const std::int32_t> ids,
                              std::span<const std::int64_t> chunk_ends,
                              std::span<const std::int64_t> triggers, const ChunkOptions& options,
                              KeyPooling pooling, std::int64_t input_budget = 0) {
    CHUNKLLM_ASSIGN_OR_RETURN(TeacherRows rows,
                              plan_teacher_rows(config(), static_cast<std::int64_t>(ids.size()),
                                                chunk_ends, triggers, options));
    CHUNKLLM_RETURN_IF_ERROR(check_room(ids, rows));
    if (ids.empty()) return Result<TeacherRows>(std::move(rows));
    takes_inputs_ = input_budget == 0;
    takes_mass_ = true;
    Status status = read(ids, pooling, /*is_dense=*/true, rows);
    if (status.ok() && input_budget > 0) {
      takes_inputs_ = true;
      takes_mass_ = false;
      status = upload_recent(
          plan_recent_reading(rows, static_cast<std::int64_t>(ids.size()), options, input_budget));
      if (status.ok()) status = read(ids, pooling, /*is_dense=*/false, rows);
    }
    if (!status.ok()) {
      // What has been enqueued must not meet the next sequence's.
      for (Slot& slot : slots_) slot.layer = -1;
      static_cast<void>(stream_.synchronize());
      static_cast<void>(copies_.synchronize());
      return status;
    }
    return Result<TeacherRows>(std::move(rows));
  }

 private:
  /// One layer's values on their way: [R, hidden] inputs, [C, hidden] pooled, [R, heads, C] mass.
  struct Slot {
    std::int64_t layer = -1;  // -1: empty
    DeviceBuffer<float> device;
    PinnedBuffer<float> host;
    Event made;
    Event copied;
  };
  /// The host empties a slot while two more layers are under way, so the device need not wait.
  static constexpr std::size_t kNumSlots = 3;

  /// Where the parts of a slot begin; rows of hidden_size keep them 16 byte aligned.
  struct Parts {
    std::size_t pooled = 0;
    std::size_t mass = 0;
    std::size_t end = 0;

    Parts(const BackboneConfig& config, std::int64_t num_rows, std::int64_t num_chunks)
        : pooled(static_cast<std::size_t>(num_rows * config.hidden_size)),
          mass(pooled + static_cast<std::size_t>(num_chunks * config.hidden_size)),
          end(mass + static_cast<std::size_t>(num_rows * config.num_heads * num_chunks)) {}
  };

  DeviceTeacher(const DeviceBackbone<T>& backbone, const DeviceTeacherLimits& limits)
      : backbone_(&backbone), limits_(limits) {}

  static Status check_limits(const DeviceTeacherLimits& limits) {
    const auto check = [](const char* name, std::int32_t value) -> Status {
      constexpr std::int32_t kMost = 65535;  // pooled rows that `launch_chunk_mass` takes
      if (value >= 1 && value <= kMost) return {};
      return invalid_argument("teacher: " + std::string(name) + " is " + std::to_string(value) +
                              ", expected 1 to " + std::to_string(kMost));
    };
    CHUNKLLM_RETURN_IF_ERROR(check("max_tokens", limits.max_tokens));
    CHUNKLLM_RETURN_IF_ERROR(check("max_chunks", limits.max_chunks));
    return check("max_triggers", limits.max_triggers);
  }

  [[nodiscard]] const BackboneConfig& config() const { return backbone_->config(); }
  [[nodiscard]] std::int64_t window(std::int64_t layer) const {
    return config().sliding_window.empty()
               ? 0
               : config().sliding_window[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] DeviceRun run() const {
    return {stream_.get(), cublas_.get(), scratch_.data(), scratch_.size()};
  }

  // Integers that the kernels read lie in one buffer, which one copy fills.
  [[nodiscard]] std::int32_t* tokens() const { return integers_.data(); }
  [[nodiscard]] std::int32_t* ends() const { return tokens() + limits_.max_tokens; }
  [[nodiscard]] std::int32_t* triggers() const { return ends() + limits_.max_chunks; }
  [[nodiscard]] std::int32_t* num_chunks() const { return triggers() + limits_.max_triggers; }
  [[nodiscard]] kernels::PrefillTile* tile() const {
    return reinterpret_cast<kernels::PrefillTile*>(num_chunks() + 1);
  }
  [[nodiscard]] std::int32_t* zero() const { return num_chunks() + 1 + kTileIntegers; }
  [[nodiscard]] DeviceChunkTable table() const {
    return {ends(), num_chunks(), 1, limits_.max_chunks};
  }
  [[nodiscard]] DeviceKvView<T> kv() const {
    DeviceKvView<T> view;
    view.keys = keys_.data();
    view.values = values_.data();
    view.seq_stride = limits_.max_tokens * config().kv_size();
    view.token_stride = config().kv_size();
    view.head_stride = config().head_dim;
    return view;
  }

  Status allocate() {
    CHUNKLLM_ASSIGN_OR_RETURN(stream_, Stream::create());
    CHUNKLLM_ASSIGN_OR_RETURN(copies_, Stream::create());
    CHUNKLLM_ASSIGN_OR_RETURN(cublas_, CublasHandle::create(stream_.get()));
    CHUNKLLM_ASSIGN_OR_RETURN(rope_, backbone_->rope_table(limits_.max_tokens, stream_.get()));
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    const std::size_t tokens = size(limits_.max_tokens);
    const std::size_t num_integers =
        tokens + size(limits_.max_chunks) + size(limits_.max_triggers) + kTileIntegers + 2;
    CHUNKLLM_ASSIGN_OR_RETURN(integers_, DeviceBuffer<std::int32_t>::create(num_integers));
    CHUNKLLM_ASSIGN_OR_RETURN(staged_, PinnedBuffer<std::int32_t>::create(num_integers));
    // Two lists of tiles, two numbers and a list of sink tokens a set.
    const std::size_t num_recent = size(limits_.max_chunks + 1) *
                                   (2 * kTileIntegers + 2 + size(RecentReading::kMostSinkTokens));
    CHUNKLLM_ASSIGN_OR_RETURN(recent_, DeviceBuffer<std::int32_t>::create(num_recent));
    CHUNKLLM_ASSIGN_OR_RETURN(recent_staged_, PinnedBuffer<std::int32_t>::create(num_recent));
    CHUNKLLM_ASSIGN_OR_RETURN(hidden_,
                              DeviceBuffer<float>::create(tokens * size(config().hidden_size)));
    CHUNKLLM_ASSIGN_OR_RETURN(normed_,
                              DeviceBuffer<T>::create(tokens * size(config().hidden_size)));
    CHUNKLLM_ASSIGN_OR_RETURN(qkv_, DeviceBuffer<T>::create(tokens * size(backbone_->qkv_size())));
    CHUNKLLM_ASSIGN_OR_RETURN(queries_,
                              DeviceBuffer<T>::create(tokens * size(config().query_size())));
    CHUNKLLM_ASSIGN_OR_RETURN(keys_, DeviceBuffer<T>::create(tokens * size(config().kv_size())));
    CHUNKLLM_ASSIGN_OR_RETURN(values_, DeviceBuffer<T>::create(tokens * size(config().kv_size())));
    CHUNKLLM_ASSIGN_OR_RETURN(attended_,
                              DeviceBuffer<T>::create(tokens * size(config().query_size())));
    CHUNKLLM_ASSIGN_OR_RETURN(lse_, DeviceBuffer<float>::create(tokens * size(config().num_heads)));
    CHUNKLLM_ASSIGN_OR_RETURN(
        scratch_, DeviceBuffer<std::byte>::create(backbone_->scratch_bytes(limits_.max_tokens)));
    CHUNKLLM_ASSIGN_OR_RETURN(open_sum_, DeviceBuffer<float>::create(size(config().hidden_size)));
    CHUNKLLM_ASSIGN_OR_RETURN(workspace_, DeviceBuffer<std::byte>::create(most_workspace_bytes()));
    const Parts parts(config(), limits_.max_triggers, limits_.max_chunks);
    for (Slot& slot : slots_) {
      CHUNKLLM_ASSIGN_OR_RETURN(slot.device, DeviceBuffer<float>::create(parts.end));
      CHUNKLLM_ASSIGN_OR_RETURN(slot.host, PinnedBuffer<float>::create(parts.end));
      CHUNKLLM_ASSIGN_OR_RETURN(slot.made, Event::create());
      CHUNKLLM_ASSIGN_OR_RETURN(slot.copied, Event::create());
    }
    std::vector<std::int32_t> positions(tokens);
    std::iota(positions.begin(), positions.end(), 0);
    CHUNKLLM_ASSIGN_OR_RETURN(
        positions_,
        DeviceBuffer<std::int32_t>::from(std::span<const std::int32_t>(positions), stream_.get()));
    // Keys and values behind a sequence's end meet weights of exactly 0, so they must be finite.
    CHUNKLLM_RETURN_IF_ERROR(keys_.zero(stream_.get()));
    CHUNKLLM_RETURN_IF_ERROR(values_.zero(stream_.get()));
    return stream_.synchronize();
  }

  [[nodiscard]] std::size_t most_workspace_bytes() const {
    kernels::ChunkMassArgs<T> args;
    args.num_rows = limits_.max_tokens;
    args.num_heads = static_cast<std::int32_t>(config().num_heads);
    args.num_columns = limits_.max_chunks;
    args.num_pooled = limits_.max_triggers;
    args.maybe_pooled_heads = lse_.data();  // any: it says what is wanted
    return kernels::chunk_mass_workspace_bytes(args);
  }

  [[nodiscard]] Status check_room(std::span<const std::int32_t> ids,
                                  const TeacherRows& rows) const {
    const auto check = [](const char* name, std::int64_t count, std::int32_t most) -> Status {
      if (count <= most) return {};
      return invalid_argument("teacher: " + std::to_string(count) + " " + name +
                              ", there is room for " + std::to_string(most));
    };
    CHUNKLLM_RETURN_IF_ERROR(
        check("tokens", static_cast<std::int64_t>(ids.size()), limits_.max_tokens));
    CHUNKLLM_RETURN_IF_ERROR(check("chunks", rows.num_chunks(), limits_.max_chunks));
    CHUNKLLM_RETURN_IF_ERROR(check("triggers", rows.num_rows(), limits_.max_triggers));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= 0 && ids[i] < config().vocab_size) continue;
      return invalid_argument("token " + std::to_string(i) + " has id " + std::to_string(ids[i]) +
                              ", expected 0 to " + std::to_string(config().vocab_size - 1));
    }
    return {};
  }

  Status read(std::span<const std::int32_t> ids, KeyPooling pooling, bool is_dense,
              TeacherRows& rows) {
    const auto num_tokens = static_cast<std::int32_t>(ids.size());
    CHUNKLLM_RETURN_IF_ERROR(upload(ids, rows));
    CHUNKLLM_RETURN_IF_ERROR(backbone_->embed(run(), tokens(), num_tokens, hidden_.data()));
    std::size_t num_taught = 0;
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      CHUNKLLM_RETURN_IF_ERROR(project(layer, num_tokens));
      CHUNKLLM_RETURN_IF_ERROR(attend(layer, num_tokens, is_dense));
      if (window(layer) == 0) {
        Slot& slot = slots_[num_taught++ % kNumSlots];
        CHUNKLLM_RETURN_IF_ERROR(empty(slot, rows));
        CHUNKLLM_RETURN_IF_ERROR(fill(slot, layer, num_tokens, pooling, rows));
      }
      // Nobody asks for the decoder's output.
      if (layer + 1 == config().num_layers) continue;
      CHUNKLLM_RETURN_IF_ERROR(
          backbone_->finish_layer(run(), layer, attended_.data(), num_tokens, hidden_.data()));
    }
    for (std::size_t i = 0; i < kNumSlots; ++i) {
      CHUNKLLM_RETURN_IF_ERROR(empty(slots_[(num_taught + i) % kNumSlots], rows));
    }
    return stream_.synchronize();
  }

  /// The staged integers are free again: a call ends with its stream's work done.
  Status upload(std::span<const std::int32_t> ids, const TeacherRows& rows) {
    const auto at = [&](const void* place) {
      return staged_.data() + (static_cast<const std::int32_t*>(place) - integers_.data());
    };
    const auto narrowed = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    std::copy(ids.begin(), ids.end(), at(tokens()));
    std::transform(rows.chunk_ends.begin(), rows.chunk_ends.end(), at(ends()), narrowed);
    std::transform(rows.triggers.begin(), rows.triggers.end(), at(triggers()), narrowed);
    *at(num_chunks()) = narrowed(rows.num_chunks());
    std::int32_t* one_tile = at(tile());
    one_tile[0] = 0;
    one_tile[1] = static_cast<std::int32_t>(ids.size());
    one_tile[2] = 0;
    *at(zero()) = 0;
    return cuda_status(cudaMemcpyAsync(integers_.data(), staged_.data(), integers_.bytes(),
                                       cudaMemcpyHostToDevice, stream_.get()),
                       "copy of a sequence to the device");
  }

  /// Tiles and sets of a reading of the recent; the staged integers are free again, as above.
  Status upload_recent(const RecentReading& reading) {
    static_assert(sizeof(kernels::PrefillTile) == 3 * sizeof(std::int32_t));
    const auto num_sets = static_cast<std::int32_t>(reading.tail_begins.size());
    const std::int64_t capacity = std::max<std::int64_t>(reading.num_sink_tokens, 1);
    std::vector<std::int32_t> values;
    const auto append_tiles = [&](const std::vector<RecentReading::Tile>& tiles,
                                  RecentTiles& result) {
      result.offset = static_cast<std::int64_t>(values.size());
      result.num_tiles = static_cast<std::int32_t>(tiles.size());
      result.max_rows = 0;
      for (const RecentReading::Tile& tile : tiles) {
        for (const std::int64_t value : {tile.first_row, tile.num_rows, tile.set}) {
          values.push_back(static_cast<std::int32_t>(value));
        }
        result.max_rows = std::max(result.max_rows, static_cast<std::int32_t>(tile.num_rows));
      }
    };
    append_tiles(reading.first_layer_tiles, first_tiles_);
    append_tiles(reading.tiles, other_tiles_);
    const auto num_span_tokens = static_cast<std::int64_t>(values.size());
    for (const std::int64_t tail : reading.tail_begins) {
      values.push_back(tail == 0 ? 0 : static_cast<std::int32_t>(reading.num_sink_tokens));
    }
    const auto tail_begin = static_cast<std::int64_t>(values.size());
    for (const std::int64_t tail : reading.tail_begins) {
      values.push_back(static_cast<std::int32_t>(tail));
    }
    const auto span_tokens = static_cast<std::int64_t>(values.size());
    for (std::int32_t set = 0; set < num_sets; ++set) {
      for (std::int64_t t = 0; t < capacity; ++t) values.push_back(static_cast<std::int32_t>(t));
    }
    if (values.size() > recent_.size()) {
      return invalid_argument("teacher: a reading of the recent takes " +
                              std::to_string(values.size()) + " integers, there is room for " +
                              std::to_string(recent_.size()));
    }
    for (RecentTiles* tiles : {&first_tiles_, &other_tiles_}) {
      tiles->tiles = reinterpret_cast<const kernels::PrefillTile*>(recent_.data() + tiles->offset);
    }
    recent_sets_ = {recent_.data() + span_tokens, recent_.data() + num_span_tokens,
                    recent_.data() + tail_begin, num_sets, static_cast<std::int32_t>(capacity)};
    std::copy(values.begin(), values.end(), recent_staged_.data());
    return cuda_status(
        cudaMemcpyAsync(recent_.data(), recent_staged_.data(), values.size() * sizeof(std::int32_t),
                        cudaMemcpyHostToDevice, stream_.get()),
        "copy of the recent tokens' sets to the device");
  }

  Status project(std::int64_t layer, std::int32_t num_tokens) const {
    CHUNKLLM_RETURN_IF_ERROR(backbone_->project_qkv(run(), layer, hidden_.data(), num_tokens,
                                                    normed_.data(), qkv_.data()));
    kernels::RopeStoreArgs<T> args = backbone_->rope_store_args(layer, qkv_.data(), num_tokens);
    args.positions = positions_.data();
    args.one_seq = true;
    args.rope = rope_->view();
    args.queries = queries_.data();
    args.kv = kv();
    args.kv_capacity = limits_.max_tokens;
    return kernels::launch_rope_store(args, stream_.get());
  }

  Status attend(std::int64_t layer, std::int32_t num_tokens, bool is_dense) const {
    kernels::PrefillAttentionArgs<T> args;
    args.q = queries_.data();
    args.out = attended_.data();
    args.q_stride = config().query_size();
    args.out_stride = config().query_size();
    args.kv = as_const(kv());
    args.sets = {nullptr, zero(), zero(), 1, 0};  // lists nothing: all from token 0 on
    args.tiles = tile();
    args.num_tiles = 1;
    args.max_tile_rows = num_tokens;
    if (!is_dense && window(layer) == 0) {
      const RecentTiles& recent = layer == 0 ? first_tiles_ : other_tiles_;
      args.sets = recent_sets_;
      args.tiles = recent.tiles;
      args.num_tiles = recent.num_tiles;
      args.max_tile_rows = recent.max_rows;
    }
    args.num_rows = num_tokens;
    args.num_heads = static_cast<std::int32_t>(config().num_heads);
    args.num_kv_heads = static_cast<std::int32_t>(config().num_kv_heads);
    args.head_dim = static_cast<std::int32_t>(config().head_dim);
    args.scale = softmax_scale(config());
    args.rope = rope_->view();
    args.window =
        static_cast<std::int32_t>(std::min<std::int64_t>(window(layer), limits_.max_tokens));
    args.maybe_lse = lse_.data();
    return kernels::launch_chunk_prefill_attention(args, stream_.get());
  }

  /// Enqueues a layer's rows, and their copy to the host on the other stream.
  Status fill(Slot& slot, std::int64_t layer, std::int32_t num_tokens, KeyPooling pooling,
              const TeacherRows& rows) const {
    const Parts parts(config(), rows.num_rows(), rows.num_chunks());
    if (parts.end == 0) return {};
    if (takes_inputs_) {
      CHUNKLLM_RETURN_IF_ERROR(gather_inputs(num_tokens, rows, slot.device.data()));
      CHUNKLLM_RETURN_IF_ERROR(
          pool_chunks(num_tokens, pooling, rows, slot.device.data() + parts.pooled));
    }
    if (takes_mass_) {
      CHUNKLLM_RETURN_IF_ERROR(measure_mass(num_tokens, rows, slot.device.data() + parts.mass));
    }
    const std::size_t first = takes_inputs_ ? 0 : parts.mass;
    const std::size_t count = (takes_mass_ ? parts.end : parts.mass) - first;
    CHUNKLLM_RETURN_IF_ERROR(slot.made.record(stream_.get()));
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaStreamWaitEvent(copies_.get(), slot.made.get(), 0), "cudaStreamWaitEvent"));
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaMemcpyAsync(slot.host.data() + first, slot.device.data() + first,
                                    count * sizeof(float), cudaMemcpyDeviceToHost, copies_.get()),
                    "copy of a layer's teacher rows"));
    CHUNKLLM_RETURN_IF_ERROR(slot.copied.record(copies_.get()));
    slot.layer = layer;
    return {};
  }

  Status gather_inputs(std::int32_t num_tokens, const TeacherRows& rows, float* out) const {
    kernels::GatherRowsArgs<T> args;
    args.rows = normed_.data();
    args.row_stride = config().hidden_size;
    args.num_rows = num_tokens;
    args.row_size = static_cast<std::int32_t>(config().hidden_size);
    args.indices = triggers();
    args.num_indices = static_cast<std::int32_t>(rows.num_rows());
    args.out = out;
    return kernels::launch_gather_rows(args, stream_.get());
  }

  Status pool_chunks(std::int32_t num_tokens, KeyPooling pooling, const TeacherRows& rows,
                     float* out) const {
    if (rows.chunk_ends.empty()) return {};
    kernels::PoolChunksArgs<T> args;
    args.block.rows = normed_.data();
    args.block.row_stride = config().hidden_size;
    args.block.num_rows = num_tokens;
    args.block.row_size = static_cast<std::int32_t>(config().hidden_size);
    args.block.table = table();
    args.block.pooling = pooling;
    args.num_new_chunks = static_cast<std::int32_t>(rows.num_chunks());
    args.open_sum = open_sum_.data();
    args.maybe_pooled = out;
    return kernels::launch_pool_chunks(args, stream_.get());
  }

  Status measure_mass(std::int32_t num_tokens, const TeacherRows& rows, float* out) const {
    kernels::ChunkMassArgs<T> args;
    args.q = queries_.data();
    args.q_row_stride = config().query_size();
    args.q_head_stride = config().head_dim;
    args.kv = as_const(kv());
    args.lse = lse_.data();
    args.table = table();
    args.num_rows = num_tokens;
    args.num_heads = static_cast<std::int32_t>(config().num_heads);
    args.num_kv_heads = static_cast<std::int32_t>(config().num_kv_heads);
    args.head_dim = static_cast<std::int32_t>(config().head_dim);
    args.scale = softmax_scale(config());
    args.num_columns = static_cast<std::int32_t>(rows.num_chunks());
    args.maybe_pooled_tokens = triggers();
    args.num_pooled = static_cast<std::int32_t>(rows.num_rows());
    args.maybe_pooled_heads = out;
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.bytes();
    return kernels::launch_chunk_mass(args, stream_.get());
  }

  /// Waits for a slot's copy and hands its values over; nothing where it is empty.
  Status empty(Slot& slot, TeacherRows& rows) const {
    if (slot.layer < 0) return {};
    CHUNKLLM_RETURN_IF_ERROR(slot.copied.synchronize());
    const Parts parts(config(), rows.num_rows(), rows.num_chunks());
    const float* values = slot.host.data();
    TeacherRows::Layer& layer = rows.layers[static_cast<std::size_t>(slot.layer)];
    if (takes_inputs_) {
      layer.inputs.assign(values, values + parts.pooled);
      layer.pooled.assign(values + parts.pooled, values + parts.mass);
    }
    if (takes_mass_) layer.mass.assign(values + parts.mass, values + parts.end);
    slot.layer = -1;
    return {};
  }

  /// Tiles of a reading of the recent, on the device.
  struct RecentTiles {
    const kernels::PrefillTile* tiles = nullptr;
    std::int64_t offset = 0;
    std::int32_t num_tiles = 0;
    std::int32_t max_rows = 0;
  };

  static constexpr std::size_t kTileIntegers = sizeof(kernels::PrefillTile) / sizeof(std::int32_t);

  const DeviceBackbone<T>* backbone_;
  DeviceTeacherLimits limits_;
  Stream stream_;
  Stream copies_;
  CublasHandle cublas_;
  std::shared_ptr<const DeviceRopeTable> rope_;
  DeviceBuffer<std::int32_t> positions_;  // 0, 1, ...
  DeviceBuffer<std::int32_t> integers_;   // of the sequence being read
  PinnedBuffer<std::int32_t> staged_;     // the same
  DeviceBuffer<std::int32_t> recent_;     // tiles and sets of a reading of the recent
  PinnedBuffer<std::int32_t> recent_staged_;
  RecentTiles first_tiles_;
  RecentTiles other_tiles_;
  DeviceAttendedSets recent_sets_;
  bool takes_inputs_ = true;  // of the reading under way
  bool takes_mass_ = true;
  DeviceBuffer<float> hidden_;
  DeviceBuffer<T> normed_;
  DeviceBuffer<T> qkv_;
  DeviceBuffer<T> queries_;
  DeviceBuffer<T> keys_;
  DeviceBuffer<T> values_;
  DeviceBuffer<T> attended_;
  DeviceBuffer<float> lse_;  // [tokens, num_heads]
  DeviceBuffer<std::byte> scratch_;
  DeviceBuffer<float> open_sum_;  // that `launch_pool_chunks` asks for; nobody reads it
  DeviceBuffer<std::byte> workspace_;
  std::array<Slot, kNumSlots> slots_;
};

}  // namespace chunkllm::cuda
