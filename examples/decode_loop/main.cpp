// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
//
// The smallest whole decoding loop: reads a prompt and continues it greedily, one `Session::step`
// a token.
//
// usage: chunkllm_decode_loop MODEL [PROMPT]

#include <algorithm>
#include <cstdio>
#include <memory>

#include "chunkllm/chunkllm.hpp"

using namespace chunkllm;

namespace {

Status run(const char* model_path, const char* prompt, ThreadPool& pool) {
  CHUNKLLM_ASSIGN_OR_RETURN(const ModelBundle model,
                            ModelBundle::open(model_path, WeightFormat::kKeep, pool));
  const BackboneConfig& config = model.backbone.config();
  const auto scorer = std::make_shared<const MeanKeyScorer>(config.num_heads, config.num_kv_heads,
                                                            config.head_dim, softmax_scale(config));
  SessionOptions options;
  options.chunk.budget.tokens = 2048;  // attended tokens, chosen anew where a chunk ends
  CHUNKLLM_ASSIGN_OR_RETURN(
      auto session,
      (Session<DecoderBackbone, MeanKeyScorer, F16>::create(
          model.backbone, scorer, /*maybe_adapter=*/nullptr,
          [&](std::int32_t id) { return model.tokenizer.token_bytes(id); }, options, pool)));

  CHUNKLLM_ASSIGN_OR_RETURN(const auto ids,
                            model.tokenizer.encode(prompt, /*add_special_tokens=*/true));
  CHUNKLLM_RETURN_IF_ERROR(session.prefill(ids));
  CHUNKLLM_ASSIGN_OR_RETURN(std::span<const float> logits, session.finish_prompt());
  StreamDecoder decoder(model.tokenizer);
  for (int i = 0; i < 16; ++i) {
    const auto id =
        static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (std::find(model.end_ids.begin(), model.end_ids.end(), id) != model.end_ids.end()) break;
    CHUNKLLM_ASSIGN_OR_RETURN(const std::string text, decoder.push(id));
    std::fputs(text.c_str(), stdout);
    CHUNKLLM_ASSIGN_OR_RETURN(logits, session.step(id));
  }
  std::puts(decoder.finish().c_str());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fputs("usage: chunkllm_decode_loop MODEL [PROMPT]\n", stderr);
    return 2;
  }
  ThreadPool pool(/*num_threads=*/2);
  const Status status = run(argv[1], argc == 3 ? argv[2] : "The capital of France is", pool);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
