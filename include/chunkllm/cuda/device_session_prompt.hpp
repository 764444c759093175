// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The members of `DeviceSession` around a prompt's end; included by device_session.hpp.
#include "chunkllm/cuda/device_session.hpp"

namespace chunkllm::cuda {

/// Chooses the sets with the last token as the trigger; its queries stand in the step's memory.
template <typename T>
Status DeviceSession<T>::refresh_at_last_token() {
  const auto trigger = static_cast<std::int32_t>(num_tokens_ - 1);
  CHUNKLLM_RETURN_IF_ERROR(put(step_->triggers(), &trigger, 1));
  if (!selects_by_layer()) {
    CHUNKLLM_RETURN_IF_ERROR(step_->choose_shared(stream_.get()));
  } else {
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      if (batch_->is_windowed(layer)) continue;
      CHUNKLLM_RETURN_IF_ERROR(
          step_->choose(layer, 1, batch_->sets(layer), nullptr, stream_.get()));
    }
  }
  CHUNKLLM_RETURN_IF_ERROR(fetch_set_sizes(batch_->set_sizes()));
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    if (batch_->is_windowed(layer)) continue;
    set_sizes_[static_cast<std::size_t>(layer)] = fetched_set_size(layer);
  }
  return {};
}

/// Chooses the sets with the prompt's last token, then looks at its last tokens again.
template <typename T>
Status DeviceSession<T>::end_prompt() {
  const std::int64_t trigger = num_tokens_ - 1;
  if (last_trigger_ != trigger) journal_.count_refresh();
  last_trigger_ = trigger;
  journal_.note_counters(trigger);
  const CandidateRange range = candidate_range(journal_.table(), trigger, options_.chunk);
  const bool attends_everything = std::all_of(set_sizes_.begin(), set_sizes_.end(),
                                              [](const SetSize& s) { return s == SetSize{}; });
  if (budget_holds_all(range, trigger, options_.chunk.budget) && attends_everything) return {};
  CHUNKLLM_RETURN_IF_ERROR(refresh_at_last_token());
  if (options_.dense_prefill) return {};
  return look_again(
      std::min({std::max<std::int64_t>(options_.chunk.second_look, 1), turn_tokens_, num_tokens_}));
}

template <typename T>
Status DeviceSession<T>::look_again(std::int64_t rows) {
  const ChunkTable& table = journal_.table();
  std::int64_t first = num_tokens_ - rows;
  const std::int64_t chunk_begin = table.begin(table.chunk_of(first));
  if (!scorer_.is_adapter()) {
    CHUNKLLM_RETURN_IF_ERROR(restart_sums(chunk_begin, first));
  } else if (scorer_.pooling() == KeyPooling::kMean) {
    first = chunk_begin;  // normed inputs of earlier tokens are gone: the chunk is read as a whole
  }
  const auto tail_token = static_cast<std::int32_t>(first);
  CHUNKLLM_RETURN_IF_ERROR(put(look_tail_.data(), &tail_token, 1));
  for (std::int64_t layer = 0; layer < (selects_by_layer() ? config().num_layers : 1); ++layer) {
    if (selects_by_layer() && batch_->is_windowed(layer)) continue;
    CHUNKLLM_RETURN_IF_ERROR(step_->choose(layer, selects_by_layer() ? 1 : config().num_layers,
                                           block_->look_set(layer), look_tail_.data(),
                                           stream_.get()));
  }
  CHUNKLLM_RETURN_IF_ERROR(count_look(first));
  while (first < num_tokens_) {
    const std::int64_t count =
        std::min(num_tokens_ - first, static_cast<std::int64_t>(block_->max_rows()));
    CHUNKLLM_RETURN_IF_ERROR(look_at(first, count));
    first += count;
  }
  return {};
}

/// Evaluates tokens [first, first + rows) again with the look sets.
template <typename T>
Status DeviceSession<T>::look_at(std::int64_t first, std::int64_t rows) {
  const ChunkTable& table = journal_.table();
  TokenBlockPlan plan;
  plan.tokens = std::span<const std::int32_t>(ids_).subspan(static_cast<std::size_t>(first),
                                                            static_cast<std::size_t>(rows));
  plan.first_token = static_cast<std::int32_t>(first);
  plan.first_chunk = static_cast<std::int32_t>(table.chunk_of(first));
  plan.new_ends =
      ends_from(plan.first_chunk)
          .first(static_cast<std::size_t>(table.chunk_of(first + rows) - plan.first_chunk));
  plan.sets = TokenBlockPlan::Sets::kLook;
  plan.shares_look_set = !selects_by_layer();
  CHUNKLLM_RETURN_IF_ERROR(block_->run(plan, stream_.get()));
  last_hidden_ = block_->hidden() + (rows - 1) * config().hidden_size;
  return {};
}

/// Counts what tokens from `first` on attend in the second look.
template <typename T>
Status DeviceSession<T>::count_look(std::int64_t first) {
  CHUNKLLM_RETURN_IF_ERROR(fetch_set_sizes(block_->look_sizes()));
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    count_rows(
        first, num_tokens_ - first, layer,
        batch_->is_windowed(layer) ? SetSize{} : fetched_set_size(selects_by_layer() ? layer : 0));
  }
  return {};
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

/// The prompt's last choice of sets, the place to come back to, and the logits behind it.
template <typename T>
Result<std::span<const float>> DeviceSession<T>::end_turn() {
  if (!options_.dense) CHUNKLLM_RETURN_IF_ERROR(end_prompt());
  CHUNKLLM_RETURN_IF_ERROR(remember_prompt_end());
  turn_tokens_ = 0;
  return head_of(last_hidden_);
}

/// Keeps what decoding changes, so that `rollback` can come back here.
template <typename T>
Status DeviceSession<T>::remember_prompt_end() {
  if (!options_.dense) {
    journal_.prune(num_tokens_);
    CHUNKLLM_RETURN_IF_ERROR(batch_->save(prompt_end_.memory, stream_.get()));
    prompt_end_.set_sizes = set_sizes_;
  }
  prompt_end_.num_tokens = num_tokens_;
  return {};
}

/// Whether `rollback` can go there.
template <typename T>
Status DeviceSession<T>::check_rollback(std::int64_t num_tokens) const {
  const bool is_known =
      options_.dense ? num_tokens >= 0 : num_tokens >= 0 && num_tokens == prompt_end_.num_tokens;
  if (!is_known || num_tokens > num_tokens_) {
    std::string message =
        "rollback to token " + std::to_string(num_tokens) + " of " + std::to_string(num_tokens_);
    if (!options_.dense) {
      message += prompt_end_.num_tokens < 0
                     ? ": on the device there must be a prompt's end to go back to"
                     : ": on the device only the last prompt's end can be gone back to, token " +
                           std::to_string(prompt_end_.num_tokens);
    }
    return out_of_range(message);
  }
  return {};
}

template <typename T>
Status DeviceSession<T>::go_back_to(std::int64_t num_tokens) {
  const auto count = static_cast<std::int32_t>(num_tokens);
  CHUNKLLM_RETURN_IF_ERROR(put(batch_->num_tokens(), &count, 1));
  if (!options_.dense) {
    journal_.rollback(num_tokens);
    CHUNKLLM_RETURN_IF_ERROR(batch_->restore(prompt_end_.memory, stream_.get()));
    set_sizes_ = prompt_end_.set_sizes;
    const auto num_chunks = static_cast<std::int32_t>(journal_.table().num_chunks());
    CHUNKLLM_RETURN_IF_ERROR(put(batch_->table().num_chunks, &num_chunks, 1));
    last_trigger_ = num_tokens - 1;
  }
  const auto dropped_of_turn = num_tokens_ - num_tokens;
  turn_tokens_ = options_.dense ? std::max<std::int64_t>(0, turn_tokens_ - dropped_of_turn) : 0;
  ids_.resize(static_cast<std::size_t>(num_tokens));
  num_tokens_ = num_tokens;
  last_row_ = LastRow::kNone;
  return {};
}

/// Logits of one final row on the device.
template <typename T>
Result<std::span<const float>> DeviceSession<T>::head_of(const float* device_row) {
  CHUNKLLM_RETURN_IF_ERROR(
      backbone_->logits(step_->run_on(stream_.get()), device_row, 1, step_->mutable_logits()));
  CHUNKLLM_RETURN_IF_ERROR(get(logits_.data(), step_->logits(), logits_.size()));
  return std::span<const float>(logits_.data(), logits_.size());
}

template <typename T>
Status DeviceSession<T>::logits(MatrixView<const float> hidden, MatrixView<float> logits) {
  if (hidden.rows == 0) return {};
  if (hidden.cols != config().hidden_size || logits.cols != config().vocab_size ||
      logits.rows != hidden.rows) {
    return invalid_argument("logits: " + std::to_string(hidden.rows) + " rows of " +
                            std::to_string(hidden.cols) + " to " + std::to_string(logits.rows) +
                            " of " + std::to_string(logits.cols) + ", expected as many of " +
                            std::to_string(config().hidden_size) + " and " +
                            std::to_string(config().vocab_size));
  }
  CHUNKLLM_RETURN_IF_ERROR(check_usable());
  const auto rows = static_cast<std::size_t>(hidden.rows);
  const std::size_t width = static_cast<std::size_t>(hidden.cols) * sizeof(float);
  const std::size_t vocab = static_cast<std::size_t>(logits.cols) * sizeof(float);
  if (head_logits_.bytes() < rows * vocab) {
    CHUNKLLM_ASSIGN_OR_RETURN(head_rows_,
                              DeviceBuffer<float>::create(rows * width / sizeof(float)));
    CHUNKLLM_ASSIGN_OR_RETURN(
        head_scratch_,
        DeviceBuffer<std::byte>::create(backbone_->scratch_bytes(static_cast<std::int32_t>(rows))));
    CHUNKLLM_ASSIGN_OR_RETURN(head_logits_,
                              DeviceBuffer<float>::create(rows * vocab / sizeof(float)));
  }
  const cudaStream_t stream = stream_.get();
  const auto stride = [](std::int64_t elements) {
    return static_cast<std::size_t>(elements) * sizeof(float);
  };
  CHUNKLLM_RETURN_IF_ERROR(cuda_status(
      cudaMemcpy2DAsync(head_rows_.data(), width, hidden.data, stride(hidden.row_stride), width,
                        rows, cudaMemcpyHostToDevice, stream),
      "copy of final rows to the device"));
  const DeviceRun run{stream, cublas_.get(), head_scratch_.data(), head_scratch_.size()};
  CHUNKLLM_RETURN_IF_ERROR(backbone_->logits(run, head_rows_.data(),
                                             static_cast<std::int32_t>(rows), head_logits_.data()));
  CHUNKLLM_RETURN_IF_ERROR(
      cuda_status(cudaMemcpy2DAsync(logits.data, stride(logits.row_stride), head_logits_.data(),
                                    vocab, vocab, rows, cudaMemcpyDeviceToHost, stream),
                  "copy of logits"));
  return stream_.synchronize();
}

}  // namespace chunkllm::cuda
