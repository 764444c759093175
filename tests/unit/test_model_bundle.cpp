// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/model_bundle.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "support/tiny_model_folder.hpp"

namespace chunkllm {
namespace {

using testing::TinyModelFolder;

Result<ModelBundle> open(const TinyModelFolder& folder, const LoadProgress& progress = {}) {
  ThreadPool pool(1);
  return ModelBundle::open(folder.path(), WeightFormat::kKeep, pool, progress);
}

TEST(ModelBundle, OpensAFolder) {
  const TinyModelFolder folder;
  const Result<ModelBundle> model = open(folder);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->backbone.config().num_layers, 2);
  EXPECT_EQ(model->tokenizer.vocab_size(), 99);
  EXPECT_EQ(model->end_ids, (std::vector<std::int32_t>{2}));
}

TEST(ModelBundle, TheTokenizerMustFitTheEmbedding) {
  const TinyModelFolder folder;
  testing::write_byte_tokenizer(folder, 100);
  const Result<ModelBundle> model = open(folder);
  EXPECT_EQ(model.status().code(), StatusCode::kInvalidFile);
  EXPECT_NE(model.status().message().find("ids up to 99"), std::string::npos)
      << model.status().message();
}

TEST(ModelBundle, AMissingTokenizerIsNamed) {
  const TinyModelFolder folder;
  std::filesystem::remove(folder.file("tokenizer.json"));
  const Result<ModelBundle> model = open(folder);
  EXPECT_EQ(model.status().code(), StatusCode::kNotFound);
  EXPECT_NE(model.status().message().find("tokenizer.json"), std::string::npos);
}

TEST(ModelBundle, ProgressCountsTensorsAndStops) {
  const TinyModelFolder folder;
  std::int64_t last = 0;
  std::int64_t total = 0;
  ASSERT_TRUE(open(folder, [&](std::int64_t done, std::int64_t of) {
                last = done;
                total = of;
                return true;
              }).ok());
  EXPECT_GT(total, 0);
  EXPECT_EQ(last, total);
  EXPECT_EQ(open(folder, [](std::int64_t, std::int64_t) { return false; }).status().code(),
            StatusCode::kInterrupted);
}

class ChatTemplateOfFolder : public ::testing::Test {
 protected:
  Result<ChatTemplate> load() {
    const Result<ModelFiles> files = ModelFiles::open(folder_.path());
    EXPECT_TRUE(files.ok()) << files.status().message();
    const Result<BpeTokenizer> tokenizer = load_tokenizer(files.value());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    return load_chat_template(files.value(), tokenizer.value());
  }

  static constexpr const char* kChatMl =
      "{% for message in messages %}<|im_start|>{{ message['role'] }}\\n{{ message['content'] }}"
      "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}";
  TinyModelFolder folder_;
};

TEST_F(ChatTemplateOfFolder, NoneIsNotFound) {
  EXPECT_EQ(load().status().code(), StatusCode::kNotFound);
}

TEST_F(ChatTemplateOfFolder, FromTokenizerConfig) {
  folder_.write("tokenizer_config.json", Json{{"chat_template", kChatMl}}.dump());
  const Result<ChatTemplate> chat = load();
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  EXPECT_EQ(chat->family(), ChatFamily::kChatMl);
}

TEST_F(ChatTemplateOfFolder, FromAListOfNamedOnes) {
  const Json list = {{{"name", "tools"}, {"template", "other"}},
                     {{"name", "default"}, {"template", kChatMl}}};
  folder_.write("tokenizer_config.json", Json{{"chat_template", list}}.dump());
  EXPECT_TRUE(load().ok()) << load().status().message();
}

TEST_F(ChatTemplateOfFolder, FromAFileOfItsOwn) {
  folder_.write("chat_template.jinja", kChatMl);
  EXPECT_TRUE(load().ok()) << load().status().message();
}

TEST_F(ChatTemplateOfFolder, AnotherTypeIsRefused) {
  folder_.write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_EQ(load().status().code(), StatusCode::kInvalidFile);
}

}  // namespace
}  // namespace chunkllm
