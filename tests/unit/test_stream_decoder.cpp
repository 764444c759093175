// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/text/stream_decoder.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

BpeTokenizer byte_tokenizer() {
  return BpeTokenizer::create(testing::tiny_spec()).value();
}

TEST(StreamDecoder, HoldsBackAnIncompleteCharacter) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push('a').value(), "a");
  EXPECT_EQ(decoder.push(0xF0).value(), "");
  EXPECT_EQ(decoder.push(0x9F).value(), "");
  EXPECT_EQ(decoder.push(0x98).value(), "");
  EXPECT_EQ(decoder.push(0x80).value(), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, FinishReplacesWhatIsLeftAndStartsAnew) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xE2).value(), "");
  EXPECT_EQ(decoder.push(0x82).value(), "");
  EXPECT_EQ(decoder.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.push('b').value(), "b");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, RefusesUnknownIdsAndStaysUsable) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xC3).value(), "");
  EXPECT_EQ(decoder.push(256).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(decoder.push(-1).status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(decoder.push(0xA9).value(), "\xC3\xA9");
}

TEST(StreamDecoder, JoinedOutputEqualsDecodeForAnyBytes) {
  const BpeTokenizer tokenizer = byte_tokenizer();
  // Bytes that begin, continue and break sequences.
  const std::vector<std::int32_t> pool = {'a',  0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1,
                                          0xC3, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xF5, 0xFF};
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::int32_t> ids;
    for (int n = 0; n < 9; ++n) ids.push_back(pool[random() % pool.size()]);
    StreamDecoder decoder(tokenizer);
    std::string joined;
    for (const std::int32_t id : ids) {
      const std::string text = decoder.push(id).value();
      ASSERT_TRUE(is_valid_utf8(text));
      joined += text;
    }
    ASSERT_EQ(joined + decoder.finish(), tokenizer.decode(ids).value());
  }
}

}  // namespace
}  // namespace chunkllm
