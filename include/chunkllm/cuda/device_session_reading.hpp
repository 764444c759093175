// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The members of `DeviceSession` that read tokens; included by device_session.hpp.
#include "chunkllm/cuda/device_session.hpp"

namespace chunkllm::cuda {

template <typename T>
Status DeviceSession<T>::read_rows(std::span<const std::int32_t> tokens, ReadMode mode,
                                   bool is_prompt, const Progress& progress,
                                   const HiddenRows& hidden_rows) {
  CHUNKLLM_RETURN_IF_ERROR(check_usable());
  CHUNKLLM_RETURN_IF_ERROR(check_ids(tokens));
  if (tokens.empty()) return {};
  CHUNKLLM_RETURN_IF_ERROR(reserve(num_tokens_ + static_cast<std::int64_t>(tokens.size())));
  return kept(read_blocks(tokens, mode, is_prompt, progress, hidden_rows));
}

template <typename T>
Status DeviceSession<T>::read_blocks(std::span<const std::int32_t> tokens, ReadMode mode,
                                     bool is_prompt, const Progress& progress,
                                     const HiddenRows& hidden_rows) {
  using Sets = TokenBlockPlan::Sets;
  const bool joined = mode == ReadMode::kAsDecode && !selects_by_layer();
  const Sets sets = options_.dense || mode == ReadMode::kDense ? Sets::kEverything
                    : joined                                   ? Sets::kStanding
                                                               : Sets::kLayerLocal;
  std::size_t done = 0;
  while (done < tokens.size()) {
    const std::int64_t first = num_tokens_;
    auto rows = std::min(static_cast<std::int64_t>(tokens.size() - done),
                         static_cast<std::int64_t>(block_->max_rows()));
    const bool chooses = sets != Sets::kEverything && !everything_fits(first + rows - 1);
    // A shared set needs all layers of its trigger before the next token can run: a block that an
    // adapter will cut anyway need not be long.
    if (finds_boundaries() && joined && chooses) rows = std::min(rows, kCutBlockRows);
    TokenBlockPlan plan;
    plan.tokens = tokens.subspan(done, static_cast<std::size_t>(rows));
    plan.first_token = static_cast<std::int32_t>(first);
    plan.first_chunk = static_cast<std::int32_t>(journal_.table().num_chunks());
    plan.sets = sets;
    triggers_.clear();
    if (finds_boundaries() && !options_.dense) {
      CHUNKLLM_RETURN_IF_ERROR(run_found_block(plan, chooses));
    } else {
      if (!options_.dense) decide_by_rules(plan, joined);
      CHUNKLLM_RETURN_IF_ERROR(block_->run(plan, stream_.get()));
    }
    CHUNKLLM_RETURN_IF_ERROR(count_block(plan));
    if (hidden_rows) CHUNKLLM_RETURN_IF_ERROR(show_rows(plan, hidden_rows));
    last_hidden_ = block_->hidden() + (plan.num_rows() - 1) * config().hidden_size;
    last_row_ = LastRow::kOfBlock;
    if (is_prompt) turn_tokens_ += plan.num_rows();
    note_read(plan.tokens);
    if (joined && !triggers_.empty()) CHUNKLLM_RETURN_IF_ERROR(refresh_at_last_token());
    done += plan.tokens.size();
    if (progress && !progress(num_tokens_)) {
      return Status(StatusCode::kInterrupted,
                    "stopped after " + std::to_string(num_tokens_) + " tokens");
    }
  }
  return {};
}

/// Finds the chunks that end in a block and its triggers by the sentence rules.
///
/// \param cuts  the block ends with its first trigger
template <typename T>
void DeviceSession<T>::decide_by_rules(TokenBlockPlan& plan, bool cuts) {
  std::size_t count = 0;
  bool is_cut = false;
  while (count < plan.tokens.size() && !is_cut) {
    const std::int64_t token = plan.first_token + static_cast<std::int64_t>(count);
    journal_.on_token(token_bytes_(plan.tokens[count]));
    ++count;
    if (!decide(token, journal_.wanted(token)) || everything_fits(token)) continue;
    triggers_.push_back(static_cast<std::int32_t>(token));
    is_cut = cuts;
  }
  plan.tokens = plan.tokens.first(count);
  plan.new_ends = ends_from(plan.first_chunk);
  if (plan.sets == TokenBlockPlan::Sets::kLayerLocal) plan.triggers = triggers_;
}

/// As above by the Chunk Adapter, and runs the block on the way.
template <typename T>
Status DeviceSession<T>::run_found_block(TokenBlockPlan& plan, bool chooses) {
  const auto decide_token = [&](std::int32_t token, float probability) {
    return decide(token, probability > adapter_->threshold) && chooses && !everything_fits(token);
  };
  const std::int32_t first_chunk = plan.first_chunk;
  return block_->find_boundaries_and_run(
      plan, *adapter_, decide_token, [&] { return ends_from(first_chunk); }, chooses, triggers_,
      stream_.get());
}

/// Ends of the chunks from `first_chunk` on, valid until the next call.
template <typename T>
std::span<const std::int32_t> DeviceSession<T>::ends_from(std::int64_t first_chunk) {
  ends_.clear();
  for (std::int64_t c = first_chunk; c < journal_.table().num_chunks(); ++c) {
    ends_.push_back(static_cast<std::int32_t>(journal_.table().end(c)));
  }
  return ends_;
}

template <typename T>
void DeviceSession<T>::note_read(std::span<const std::int32_t> tokens) {
  ids_.insert(ids_.end(), tokens.begin(), tokens.end());
  num_tokens_ += static_cast<std::int64_t>(tokens.size());
  // The last prompt's end is all that can be gone back to.
  if (!options_.dense) {
    journal_.prune(prompt_end_.num_tokens >= 0 ? prompt_end_.num_tokens : num_tokens_);
  }
}

template <typename T>
Status DeviceSession<T>::show_rows(const TokenBlockPlan& plan, const HiddenRows& hidden_rows) {
  const auto width = static_cast<std::size_t>(config().hidden_size);
  host_hidden_.resize(plan.tokens.size() * width);
  CHUNKLLM_RETURN_IF_ERROR(get(host_hidden_.data(), block_->hidden(), host_hidden_.size()));
  hidden_rows(plan.first_token, {host_hidden_.data(), plan.num_rows(), config().hidden_size});
  return {};
}

/// Counts what a block's rows attended, and notes the sizes of the sets in force behind it.
template <typename T>
Status DeviceSession<T>::count_block(const TokenBlockPlan& plan) {
  const auto num_sets = static_cast<std::size_t>(block_->num_triggers()) + 1;
  if (num_sets > 1) {
    CHUNKLLM_RETURN_IF_ERROR(block_->read_set_sizes(block_sizes_, stream_.get()));
  }
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    SetSize& in_force = set_sizes_[static_cast<std::size_t>(layer)];
    if (plan.sets == TokenBlockPlan::Sets::kEverything || batch_->is_windowed(layer)) {
      count_rows(plan.first_token, plan.num_rows(), layer, SetSize{});
    } else if (num_sets == 1) {
      count_rows(plan.first_token, plan.num_rows(), layer, in_force);
    } else {
      const SetSize* sizes = block_sizes_.data() + static_cast<std::size_t>(layer) * num_sets;
      for (const kernels::PrefillTile& tile : block_->tiles(layer)) {
        count_rows(plan.first_token + tile.first_row, tile.num_rows, layer, sizes[tile.set]);
      }
      in_force = sizes[num_sets - 1];
    }
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

/// One copy to the device, the graph, one copy of the logits and one of the sets' sizes back: the
/// host waits once.
template <typename T>
Result<std::span<const float>> DeviceSession<T>::run_step(std::int32_t token) {
  const cudaStream_t stream = stream_.get();
  const bool by_rules = !options_.dense && !finds_boundaries();
  if (by_rules) journal_.on_token(token_bytes_(token));
  StepIn& in = *step_in_.data();
  in.token = token;
  in.wanted = by_rules && journal_.wanted(num_tokens_) ? 1 : 0;
  CHUNKLLM_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(step_->tokens(), &in, kStepInBytes, cudaMemcpyHostToDevice, stream),
      "copy of a token to the device"));
  CHUNKLLM_RETURN_IF_ERROR(step_->replay(stream));
  CHUNKLLM_RETURN_IF_ERROR(
      cuda_status(cudaMemcpyAsync(logits_.data(), step_->logits(), logits_.bytes(),
                                  cudaMemcpyDeviceToHost, stream),
                  "copy of the logits"));
  if (finds_boundaries() && !options_.dense) {
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaMemcpyAsync(step_out_.data() + 2 * config().num_layers,
                                    step_->boundary_flags(), 1, cudaMemcpyDeviceToHost, stream),
                    "copy of a boundary"));
  }
  if (options_.dense) {
    CHUNKLLM_RETURN_IF_ERROR(stream_.synchronize());
    for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
      count_rows(num_tokens_, 1, layer, SetSize{});
    }
  } else {
    CHUNKLLM_RETURN_IF_ERROR(fetch_set_sizes(batch_->set_sizes()));
    bool wants = in.wanted != 0;
    if (finds_boundaries()) {
      std::uint8_t flag = 0;
      std::memcpy(&flag, step_out_.data() + 2 * config().num_layers, 1);
      wants = flag == 1;
    }
    decide(num_tokens_, wants);
    count_step();
  }
  last_row_ = LastRow::kOfStep;
  note_read({&token, 1});
  return std::span<const float>(logits_.data(), logits_.size());
}

/// Counts a decoded token, and notes the sizes of the sets that stand behind it. A layer's own set
/// acts in its trigger but for the first layer, which finds the boundary; a shared one behind it.
template <typename T>
void DeviceSession<T>::count_step() {
  for (std::int64_t layer = 0; layer < config().num_layers; ++layer) {
    SetSize& size = set_sizes_[static_cast<std::size_t>(layer)];
    const SetSize before = size;
    if (!batch_->is_windowed(layer)) size = fetched_set_size(layer);
    count_rows(num_tokens_, 1, layer, selects_by_layer() && layer > 0 ? size : before);
  }
}

/// Waits for the stream and reads [2, num_layers] sizes.
template <typename T>
Status DeviceSession<T>::fetch_set_sizes(const DeviceBuffer<std::int32_t>& sizes) {
  CHUNKLLM_RETURN_IF_ERROR(
      cuda_status(cudaMemcpyAsync(step_out_.data(), sizes.data(), sizes.bytes(),
                                  cudaMemcpyDeviceToHost, stream_.get()),
                  "copy of the sets' sizes"));
  return stream_.synchronize();
}
template <typename T>
SetSize DeviceSession<T>::fetched_set_size(std::int64_t layer) const {
  return {step_out_.data()[layer], step_out_.data()[config().num_layers + layer]};
}

template <typename T>
Result<std::vector<TokenSpan>> DeviceSession<T>::segments(std::int64_t layer) const {
  if (layer < 0 || layer >= config().num_layers) {
    return out_of_range("layer " + std::to_string(layer) + " of " +
                        std::to_string(config().num_layers));
  }
  std::vector<TokenSpan> spans;
  std::int64_t tail_begin = 0;
  if (batch_ && !options_.dense && !batch_->is_windowed(layer)) {
    const DeviceAttendedSets sets = batch_->sets(layer);
    SetSize size;
    CHUNKLLM_RETURN_IF_ERROR(get(&size.num_span_tokens, sets.num_span_tokens, 1));
    CHUNKLLM_RETURN_IF_ERROR(get(&size.tail_begin, sets.tail_begin, 1));
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(size.num_span_tokens));
    if (!tokens.empty()) {
      CHUNKLLM_RETURN_IF_ERROR(get(tokens.data(), sets.span_tokens, tokens.size()));
    }
    for (const std::int32_t token : tokens) {
      if (spans.empty() || spans.back().end != token) spans.push_back({token, token});
      spans.back().end = token + 1;
    }
    tail_begin = size.tail_begin;
  }
  if (spans.empty() || spans.back().end != tail_begin) spans.push_back({tail_begin, tail_begin});
  spans.back().end = num_tokens_ + 1;
  return spans;
}

}  // namespace chunkllm::cuda
