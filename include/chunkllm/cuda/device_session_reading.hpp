// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The members of `DeviceSession` that read text in blocks; included by device_session.hpp.
#include "chunkllm/cuda/device_session.hpp"

namespace chunkllm::cuda {

template <typename T>
Status DeviceSession<T>::read_rows(std::span<const std::int32_t> tokens, ReadMode mode,
                                   bool is_prompt, const Progress& progress,
                                   const HiddenRows& hidden_rows) {
  CHUNKLLM_RETURN_IF_ERROR(check_ids(tokens));
  CHUNKLLM_RETURN_IF_ERROR(reserve(num_tokens_ + static_cast<std::int64_t>(tokens.size())));
  const bool joined = mode == ReadMode::kAsDecode && options_.chunk.selection != Selection::kLayer;
  using Sets = TokenBlockPlan::Sets;
  const Sets sets = options_.dense || mode == ReadMode::kDense ? Sets::kEverything
                    : joined                                   ? Sets::kShared
                                                               : Sets::kLayerLocal;
  if (sets == Sets::kLayerLocal) CHUNKLLM_RETURN_IF_ERROR(spread_shared_sets());
  if (!is_prompt) turn_.clear();
  std::size_t done = 0;
  while (done < tokens.size()) {
    const std::size_t most =
        std::min(tokens.size() - done, static_cast<std::size_t>(block_->max_rows()));
    const std::int64_t first = num_tokens_;
    const std::int64_t first_chunk = journal_.table().num_chunks();
    std::vector<std::int32_t> triggers;
    std::size_t count = most;
    bool cut = false;
    if (!options_.dense) {
      for (std::size_t i = 0; i < most && !cut; ++i) {
        const std::int64_t token = first + static_cast<std::int64_t>(i);
        if (journal_.num_read_tokens() == token) journal_.on_token(token_bytes_(tokens[done + i]));
        if (!decide(token) || everything_fits(token)) continue;
        triggers.push_back(static_cast<std::int32_t>(token));
        // A shared set needs all layers of its trigger before the next token can run.
        cut = joined;
        if (cut) count = i + 1;
      }
    }
    TokenBlockPlan plan;
    plan.tokens = tokens.subspan(done, count);
    plan.first_token = static_cast<std::int32_t>(first);
    plan.sets = sets;
    if (sets == Sets::kLayerLocal) plan.triggers = triggers;
    CHUNKLLM_RETURN_IF_ERROR(run_block(tokens.subspan(done, count), plan, first_chunk));
    const auto rows = static_cast<std::int64_t>(count);
    if (hidden_rows) {
      host_hidden_.resize(count * static_cast<std::size_t>(config().hidden_size));
      CHUNKLLM_RETURN_IF_ERROR(get(host_hidden_.data(), block_->hidden(), host_hidden_.size()));
      hidden_rows(first, {host_hidden_.data(), rows, config().hidden_size});
    }
    num_tokens_ += rows;
    if (is_prompt) {
      turn_.insert(turn_.end(), plan.tokens.begin(), plan.tokens.end());
      // A second look reaches no further back.
      const auto keep =
          static_cast<std::size_t>(options_.chunk.second_look + options_.chunk.guards.max_len + 1);
      if (turn_.size() > 2 * keep) {
        turn_.erase(turn_.begin(), turn_.end() - static_cast<std::ptrdiff_t>(keep));
      }
    }
    if (cut) CHUNKLLM_RETURN_IF_ERROR(refresh_shared());
    done += count;
    if (progress && !progress(num_tokens_)) {
      return Status(StatusCode::kInterrupted,
                    "stopped after " + std::to_string(num_tokens_) + " tokens");
    }
  }
  return {};
}

/// Uploads the chunks that end in the block, runs it, and counts what it attended.
template <typename T>
Status DeviceSession<T>::run_block(std::span<const std::int32_t> tokens, TokenBlockPlan plan,
                                   std::int64_t first_chunk) {
  const ChunkTable& table = journal_.table();
  plan.first_chunk = static_cast<std::int32_t>(first_chunk);
  plan.num_new_chunks = static_cast<std::int32_t>(table.num_chunks() - first_chunk);
  if (!options_.dense && plan.num_new_chunks > 0 && plan.sets != TokenBlockPlan::Sets::kLook) {
    std::vector<std::int32_t> ends;
    for (std::int64_t c = first_chunk; c < table.num_chunks(); ++c) {
      ends.push_back(static_cast<std::int32_t>(table.end(c)));
    }
    const auto num_chunks = static_cast<std::int32_t>(table.num_chunks());
    CHUNKLLM_RETURN_IF_ERROR(put(batch_->table().ends + first_chunk, ends.data(), ends.size()));
    CHUNKLLM_RETURN_IF_ERROR(put(batch_->table().num_chunks, &num_chunks, 1));
  }
  CHUNKLLM_RETURN_IF_ERROR(block_->run(plan, stream_.get()));
  const auto rows = static_cast<std::int64_t>(tokens.size());
  last_hidden_ = block_->hidden() + (rows - 1) * config().hidden_size;
  has_last_row_ = true;
  if (plan.sets == TokenBlockPlan::Sets::kLook) return {};

  const std::int32_t num_sets = 1 + block_->num_triggers();
  const bool counts = plan.first_token + rows > count_from_;
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    if (plan.sets == TokenBlockPlan::Sets::kEverything || batch_->is_windowed(layer)) {
      if (counts) count_rows(plan.first_token, rows, layer, SetSize{});
      continue;
    }
    SetSize& in_force = set_sizes_[static_cast<std::size_t>(layer)];
    if (num_sets == 1) {
      if (counts) count_rows(plan.first_token, rows, layer, in_force);
      continue;
    }
    const DeviceAttendedSets chosen = block_->chosen_sets(layer);
    std::vector<std::int32_t> spans(static_cast<std::size_t>(num_sets));
    std::vector<std::int32_t> tails(spans.size());
    CHUNKLLM_RETURN_IF_ERROR(get(spans.data(), chosen.num_span_tokens, spans.size()));
    CHUNKLLM_RETURN_IF_ERROR(get(tails.data(), chosen.tail_begin, tails.size()));
    for (const kernels::PrefillTile& tile : block_->tiles(layer)) {
      const auto set = static_cast<std::size_t>(tile.set);
      count_rows(plan.first_token + tile.first_row, tile.num_rows, layer, {spans[set], tails[set]});
    }
    in_force = {spans.back(), tails.back()};
  }
  return {};
}

template <typename T>
void DeviceSession<T>::count_rows(std::int64_t first, std::int64_t rows, std::int64_t layer,
                                  const SetSize& set) {
  const std::int64_t window = batch_->window(layer);
  for (std::int64_t token = std::max(first, count_from_); token < first + rows; ++token) {
    std::int64_t attended = set.num_span_tokens + token + 1 - set.tail_begin;
    if (window > 0) attended = std::min(attended, window);
    attended_.share_sum += static_cast<double>(attended) / static_cast<double>(token + 1);
    attended_.attended_sum += static_cast<double>(attended);
    ++attended_.count;
  }
}

template <typename T>
Status DeviceSession<T>::count_step() {
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    const bool everything = options_.dense || batch_->is_windowed(layer);
    count_rows(num_tokens_, 1, layer,
               everything ? SetSize{} : set_sizes_[static_cast<std::size_t>(layer)]);
  }
  return {};
}

/// The sizes of the sets in force.
template <typename T>
Status DeviceSession<T>::load_set_sizes() {
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    SetSize& size = set_sizes_[static_cast<std::size_t>(layer)];
    if (layer > 0 && options_.chunk.selection != Selection::kLayer) {
      size = set_sizes_.front();
      continue;
    }
    const DeviceAttendedSets sets = batch_->sets(layer);
    CHUNKLLM_RETURN_IF_ERROR(get(&size.num_span_tokens, sets.num_span_tokens, 1));
    CHUNKLLM_RETURN_IF_ERROR(get(&size.tail_begin, sets.tail_begin, 1));
  }
  return {};
}

/// Chooses the set that all layers share, with the last token as the trigger.
template <typename T>
Status DeviceSession<T>::refresh_shared() {
  const auto trigger = static_cast<std::int32_t>(num_tokens_ - 1);
  CHUNKLLM_RETURN_IF_ERROR(put(step_->triggers(), &trigger, 1));
  CHUNKLLM_RETURN_IF_ERROR(step_->select_sets(0, config().num_layers, batch_->sets(0),
                                              /*maybe_tail_tokens=*/nullptr, stream_.get()));
  layer_sets_are_stale_ = true;
  return load_set_sizes();
}

/// Prompts are read layer by layer: gives each layer the set that all shared until now.
template <typename T>
Status DeviceSession<T>::spread_shared_sets() {
  if (!layer_sets_are_stale_ || options_.chunk.selection == Selection::kLayer) return {};
  for (std::int64_t layer = 1; layer < config().num_layers; ++layer) {
    if (batch_->is_windowed(layer)) continue;
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_copy_set(batch_->layer_sets(0), 0,
                                                      batch_->layer_sets(layer), 0, stream_.get()));
    set_sizes_[static_cast<std::size_t>(layer)] = set_sizes_.front();
  }
  layer_sets_are_stale_ = false;
  return {};
}

/// Chooses the sets with the prompt's last token, then looks at its last tokens again.
template <typename T>
Status DeviceSession<T>::end_prompt() {
  const std::int64_t trigger = num_tokens_ - 1;
  if (last_trigger_ != trigger) journal_.count_refresh();
  last_trigger_ = trigger;
  journal_.note_counters(trigger);
  if (everything_fits(trigger)) return {};
  if (options_.chunk.selection == Selection::kLayer) {
    const auto token = static_cast<std::int32_t>(trigger);
    CHUNKLLM_RETURN_IF_ERROR(put(step_->triggers(), &token, 1));
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      if (batch_->is_windowed(layer)) continue;
      CHUNKLLM_RETURN_IF_ERROR(
          step_->select_sets(layer, 1, batch_->sets(layer), nullptr, stream_.get()));
    }
    CHUNKLLM_RETURN_IF_ERROR(load_set_sizes());
  } else {
    CHUNKLLM_RETURN_IF_ERROR(refresh_shared());
  }
  if (options_.dense_prefill) return {};
  return look_again(std::min({std::max<std::int64_t>(options_.chunk.second_look, 1),
                              static_cast<std::int64_t>(turn_.size()), num_tokens_}));
}

template <typename T>
Status DeviceSession<T>::look_again(std::int64_t rows) {
  const ChunkTable& table = journal_.table();
  std::int64_t first = num_tokens_ - rows;
  const std::int64_t first_chunk = table.chunk_of(first);
  const std::int64_t chunk_begin = table.begin(first_chunk);
  // Normed inputs of earlier tokens are gone: the chunk is looked at as a whole.
  if (scorer_.is_adapter() &&
      num_tokens_ - chunk_begin <= static_cast<std::int64_t>(turn_.size())) {
    first = chunk_begin;
    rows = num_tokens_ - first;
  }
  const auto tail_token = static_cast<std::int32_t>(first);
  DeviceBuffer<std::int32_t> tail;
  CHUNKLLM_ASSIGN_OR_RETURN(tail, DeviceBuffer<std::int32_t>::create(1));
  CHUNKLLM_RETURN_IF_ERROR(put(tail.data(), &tail_token, 1));
  const bool by_layer = options_.chunk.selection == Selection::kLayer;
  for (std::int64_t layer = 0; layer < (by_layer ? config().num_layers : 1); ++layer) {
    if (by_layer && batch_->is_windowed(layer)) continue;
    CHUNKLLM_RETURN_IF_ERROR(step_->select_sets(layer, by_layer ? 1 : config().num_layers,
                                                block_->look_set(layer), tail.data(),
                                                stream_.get()));
  }
  if (!scorer_.is_adapter()) CHUNKLLM_RETURN_IF_ERROR(restart_sums(chunk_begin, first));
  TokenBlockPlan plan;
  const std::span<const std::int32_t> tokens =
      std::span<const std::int32_t>(turn_).last(static_cast<std::size_t>(rows));
  plan.tokens = tokens;
  plan.first_token = static_cast<std::int32_t>(first);
  plan.sets = TokenBlockPlan::Sets::kLook;
  plan.shares_look_set = !by_layer;
  return run_block(tokens, plan, first_chunk);
}

/// Sets the open sums to those of tokens [chunk_begin, first), from the cached keys.
template <typename T>
Status DeviceSession<T>::restart_sums(std::int64_t chunk_begin, std::int64_t first) {
  if (first == chunk_begin) return {};  // the first row replaces the sum
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    if (batch_->is_windowed(layer)) continue;
    const DeviceKvView<T> kv = batch_->kv(layer);
    kernels::PoolChunksArgs<T, T> pool;
    pool.block.rows = kv.keys + kv.token_offset(0, static_cast<std::int32_t>(chunk_begin));
    pool.block.row_stride = scorer_.row_size();
    pool.block.num_rows = static_cast<std::int32_t>(first - chunk_begin);
    pool.block.row_size = static_cast<std::int32_t>(scorer_.row_size());
    pool.block.first_token = static_cast<std::int32_t>(chunk_begin);
    pool.block.table = batch_->table();
    pool.block.pooling = scorer_.pooling();
    pool.first_chunk = static_cast<std::int32_t>(journal_.table().chunk_of(first));
    pool.open_sum = batch_->open_sums(layer);
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_pool_chunks(pool, stream_.get()));
  }
  return {};
}

/// Keeps what decoding changes, so that `rollback` can come back here.
template <typename T>
Status DeviceSession<T>::remember_prompt_end() {
  prompt_end_.num_tokens = num_tokens_;
  if (options_.dense) return {};
  const cudaStream_t stream = stream_.get();
  CHUNKLLM_RETURN_IF_ERROR(batch_->save(prompt_end_.memory, stream));
  prompt_end_.set_sizes = set_sizes_;
  return stream_.synchronize();
}

template <typename T>
Status DeviceSession<T>::rollback(std::int64_t num_tokens) {
  if (num_tokens == num_tokens_) return {};
  if (num_tokens != prompt_end_.num_tokens || num_tokens > num_tokens_) {
    return out_of_range("rollback to token " + std::to_string(num_tokens) + " of " +
                        std::to_string(num_tokens_) +
                        ": on the device only the last prompt's end can be gone back to, token " +
                        std::to_string(prompt_end_.num_tokens));
  }
  if (!options_.dense) {
    journal_.rollback(num_tokens);
    CHUNKLLM_RETURN_IF_ERROR(batch_->restore(prompt_end_.memory, stream_.get()));
    set_sizes_ = prompt_end_.set_sizes;
    const auto num_chunks = static_cast<std::int32_t>(journal_.table().num_chunks());
    CHUNKLLM_RETURN_IF_ERROR(put(batch_->table().num_chunks, &num_chunks, 1));
    last_trigger_ = num_tokens - 1;
  }
  num_tokens_ = num_tokens;
  has_last_row_ = false;
  return {};
}

/// Logits of one final row on the device.
template <typename T>
Result<std::span<const float>> DeviceSession<T>::head_of(const float* device_row) {
  CHUNKLLM_RETURN_IF_ERROR(
      backbone_->logits(step_->run_on(stream_.get()), device_row, 1, step_->mutable_logits()));
  CHUNKLLM_RETURN_IF_ERROR(get(logits_.data(), step_->logits(), logits_.size()));
  return std::span<const float>(logits_);
}

template <typename T>
Status DeviceSession<T>::logits(MatrixView<const float> hidden, MatrixView<float> logits) {
  const auto size = static_cast<std::size_t>(config().hidden_size);
  const auto vocab = static_cast<std::size_t>(config().vocab_size);
  const auto rows = static_cast<std::size_t>(hidden.rows);
  if (head_rows_.size() < rows * size) {
    CHUNKLLM_ASSIGN_OR_RETURN(head_rows_, DeviceBuffer<float>::create(rows * size));
    CHUNKLLM_ASSIGN_OR_RETURN(head_logits_, DeviceBuffer<float>::create(rows * vocab));
    CHUNKLLM_ASSIGN_OR_RETURN(
        head_scratch_,
        DeviceBuffer<std::byte>::create(backbone_->scratch_bytes(static_cast<std::int32_t>(rows))));
  }
  for (std::size_t r = 0; r < rows; ++r) {
    CHUNKLLM_RETURN_IF_ERROR(
        head_rows_.upload(std::span<const float>(hidden.row(static_cast<std::int64_t>(r)), size),
                          stream_.get(), r * size));
  }
  const DeviceRun run{stream_.get(), cublas_.get(), head_scratch_.data(), head_scratch_.size()};
  CHUNKLLM_RETURN_IF_ERROR(backbone_->logits(run, head_rows_.data(),
                                             static_cast<std::int32_t>(rows), head_logits_.data()));
  for (std::size_t r = 0; r < rows; ++r) {
    CHUNKLLM_RETURN_IF_ERROR(
        head_logits_.download(std::span<float>(logits.row(static_cast<std::int64_t>(r)), vocab),
                              stream_.get(), r * vocab));
  }
  return stream_.synchronize();
}

}  // namespace chunkllm::cuda
