// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/cuda/device_teacher.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/train/teacher_rows.hpp"
#include "cuda/support/device.hpp"
#include "cuda/support/session_pair.hpp"
#include "support/compare.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm::cuda {
namespace {

using testing::kRoundoff;
using testing::ModelPair;
using testing::succeeds;
using testing::tiny_text;

using Positions = std::vector<std::int64_t>;
using Ids = std::vector<std::int32_t>;

template <typename T>
using HostKv = std::conditional_t<std::is_same_v<T, __half>, F16, BF16>;

constexpr DeviceTeacherLimits kLimits = {400, 64, 64};

/// More layers than are on their way to the host at once.
BackboneConfig deep_config() {
  BackboneConfig config = testing::session_config();
  config.num_layers = 7;
  config.sliding_window.assign(7, 0);
  return config;
}

/// What layer l's values may differ by from the CPU's, in units of u sqrt(l + 1), u being T's
/// roundoff: how far the vector of all is off, relative to its length, and how far one value is.
///
/// A layer rounds eight states to T. With four of them rounded (normed inputs, projections,
/// attended rows) the CPU's own values move by up to 2.7 (masses 1.7), and single ones by 18
/// (masses 2.4): largest of 3 models, texts of 2 to 400 tokens and both types. All eight make that
/// sqrt(2) times as much; the bounds are 2.3 times what results. Values of another row or chunk
/// would be off by about 1.4 of their length, 14 times the bound of the last layer in bf16.
struct Bounds {
  double length;
  double most;
};
constexpr Bounds kInputs = {9.0, 60.0};
constexpr Bounds kMass = {5.5, 8.0};

template <typename T>
void expect_close(const std::vector<float>& actual, const std::vector<float>& expected,
                  const Bounds& bounds, std::size_t layer) {
  ASSERT_EQ(actual.size(), expected.size());
  const double unit = kRoundoff<T> * std::sqrt(static_cast<double>(layer) + 1.0);
  EXPECT_TRUE(testing::all_within(actual, std::vector<double>(expected.begin(), expected.end()),
                                  bounds.most * unit));
  double squares = 0.0;
  double errors = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<double>(expected[i]);
    const double error = static_cast<double>(actual[i]) - value;
    squares += value * value;
    errors += error * error;
  }
  EXPECT_LE(std::sqrt(errors), bounds.length * unit * std::sqrt(squares));
}

template <typename T>
void expect_close(const TeacherRows& actual, const TeacherRows& expected) {
  EXPECT_EQ(actual.hidden_size, expected.hidden_size);
  EXPECT_EQ(actual.num_heads, expected.num_heads);
  EXPECT_EQ(actual.triggers, expected.triggers);
  EXPECT_EQ(actual.chunk_ends, expected.chunk_ends);
  EXPECT_EQ(actual.candidate_ends, expected.candidate_ends);
  ASSERT_EQ(actual.layers.size(), expected.layers.size());
  for (std::size_t layer = 0; layer < expected.layers.size(); ++layer) {
    SCOPED_TRACE("layer " + std::to_string(layer));
    const TeacherRows::Layer& a = actual.layers[layer];
    const TeacherRows::Layer& e = expected.layers[layer];
    expect_close<T>(a.inputs, e.inputs, kInputs, layer);
    expect_close<T>(a.pooled, e.pooled, kInputs, layer);
    expect_close<T>(a.mass, e.mass, kMass, layer);
    if (a.mass.size() != e.mass.size()) continue;
    std::size_t num_wrong = 0;
    for (std::size_t i = 0; i < e.mass.size(); ++i) {
      // Exactly nothing of a chunk that was not closed.
      if (e.mass[i] == 0.0F && a.mass[i] != 0.0F) ++num_wrong;
    }
    EXPECT_EQ(num_wrong, 0U);
  }
}

void expect_equal(const TeacherRows& actual, const TeacherRows& expected) {
  ASSERT_EQ(actual.layers.size(), expected.layers.size());
  for (std::size_t layer = 0; layer < expected.layers.size(); ++layer) {
    EXPECT_EQ(actual.layers[layer].inputs, expected.layers[layer].inputs) << layer;
    EXPECT_EQ(actual.layers[layer].pooled, expected.layers[layer].pooled) << layer;
    EXPECT_EQ(actual.layers[layer].mass, expected.layers[layer].mass) << layer;
  }
}

struct Lesson {
  Ids ids;
  Positions ends;
  Positions triggers;
};

/// Chunks of 4 to 26 tokens; triggers where they end, within one, and at the last token.
Lesson lesson_of(std::int64_t num_tokens, std::uint32_t seed = 7) {
  Lesson lesson;
  lesson.ids = tiny_text(num_tokens, seed);
  std::int64_t end = 0;
  for (std::int64_t i = 0;; ++i) {
    const std::int64_t length = 4 + i * 7 % 23;
    if (end + length > num_tokens) break;
    if (i % 5 == 4) lesson.triggers.push_back(end + 1);
    end += length;
    lesson.ends.push_back(end);
    lesson.triggers.push_back(end - 1);
  }
  if (lesson.triggers.empty() || lesson.triggers.back() < num_tokens - 1) {
    lesson.triggers.push_back(num_tokens - 1);
  }
  return lesson;
}

class DeviceTeacherTest : public testing::DeviceTest {
 protected:
  template <typename T>
  static Result<TeacherRows> on_cpu(const DecoderBackbone& backbone, const Lesson& lesson,
                                    KeyPooling pooling) {
    ThreadPool pool(2);
    return collect_teacher_rows<HostKv<T>>(backbone, lesson.ids, lesson.ends, lesson.triggers,
                                           ChunkOptions{}, pooling, pool, {});
  }
  template <typename T>
  static Result<TeacherRows> on_device(DeviceTeacher<T>& teacher, const Lesson& lesson,
                                       KeyPooling pooling = KeyPooling::kMean) {
    return teacher.collect(lesson.ids, lesson.ends, lesson.triggers, ChunkOptions{}, pooling);
  }

  template <typename T>
  static void check(const BackboneConfig& config, const Lesson& lesson, KeyPooling pooling) {
    const auto pair = ModelPair<T>::make(config, 31);
    ASSERT_NE(pair, nullptr);
    auto teacher = DeviceTeacher<T>::create(pair->gpu, kLimits);
    ASSERT_TRUE(succeeds(teacher.status()));
    const auto actual = on_device(teacher.value(), lesson, pooling);
    const auto expected = on_cpu<T>(pair->cpu, lesson, pooling);
    ASSERT_TRUE(succeeds(actual.status()));
    ASSERT_TRUE(succeeds(expected.status()));
    expect_close<T>(actual.value(), expected.value());
  }
};

TEST_F(DeviceTeacherTest, EqualsTheCpu) {
  {
    SCOPED_TRACE("f16");
    check<__half>(deep_config(), lesson_of(300), KeyPooling::kMean);
  }
  {
    SCOPED_TRACE("bf16");
    check<__nv_bfloat16>(deep_config(), lesson_of(400), KeyPooling::kMean);
  }
}

TEST_F(DeviceTeacherTest, EqualsTheCpuWithBiasesAndNorms) {
  BackboneConfig config = testing::session_config();
  config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm = true;
  check<__half>(config, lesson_of(200), KeyPooling::kEndToken);
}

TEST_F(DeviceTeacherTest, ShortSequences) {
  const auto pair = ModelPair<__half>::make(testing::session_config(), 31);
  ASSERT_NE(pair, nullptr);
  auto teacher = DeviceTeacher<__half>::create(pair->gpu, kLimits);
  ASSERT_TRUE(succeeds(teacher.status()));
  for (const std::int64_t num_tokens : {0, 1, 2, 5, 16, 17, 63, 64, 65}) {
    SCOPED_TRACE(std::to_string(num_tokens) + " tokens");
    Lesson lesson = lesson_of(num_tokens);
    if (num_tokens == 0) lesson = {};
    const auto actual = on_device(teacher.value(), lesson);
    const auto expected = on_cpu<__half>(pair->cpu, lesson, KeyPooling::kMean);
    ASSERT_TRUE(succeeds(actual.status()));
    ASSERT_TRUE(succeeds(expected.status()));
    if (num_tokens > 0) expect_close<__half>(actual.value(), expected.value());
  }
}

TEST_F(DeviceTeacherTest, WindowedLayersYieldNothing) {
  BackboneConfig config = deep_config();
  config.architecture = Architecture::kMistral;
  config.sliding_window = {40, 0, 40, 0, 0, 0, 40};
  check<__half>(config, lesson_of(300), KeyPooling::kMean);
}

TEST_F(DeviceTeacherTest, EndTokensAreTheInputsOfTheirTriggers) {
  const auto pair = ModelPair<__nv_bfloat16>::make(testing::session_config(), 31);
  ASSERT_NE(pair, nullptr);
  auto teacher = DeviceTeacher<__nv_bfloat16>::create(pair->gpu, kLimits);
  ASSERT_TRUE(succeeds(teacher.status()));
  Lesson lesson;
  lesson.ids = tiny_text(150);
  lesson.ends = {5, 6, 40, 110};
  lesson.triggers = {4, 5, 39, 109};
  const auto rows = on_device(teacher.value(), lesson, KeyPooling::kEndToken);
  ASSERT_TRUE(succeeds(rows.status()));
  for (const TeacherRows::Layer& layer : rows->layers) {
    EXPECT_FALSE(layer.pooled.empty());
    EXPECT_EQ(layer.pooled, layer.inputs);
  }
}

TEST_F(DeviceTeacherTest, ForgetsTheSequenceBefore) {
  const auto pair = ModelPair<__nv_bfloat16>::make(deep_config(), 31);
  ASSERT_NE(pair, nullptr);
  auto teacher = DeviceTeacher<__nv_bfloat16>::create(pair->gpu, kLimits);
  ASSERT_TRUE(succeeds(teacher.status()));
  const Lesson lesson = lesson_of(150);
  const auto first = on_device(teacher.value(), lesson);
  ASSERT_TRUE(succeeds(first.status()));
  ASSERT_TRUE(succeeds(on_device(teacher.value(), lesson_of(400, /*seed=*/8)).status()));
  // A refused one in between.
  EXPECT_FALSE(on_device(teacher.value(), lesson_of(401)).ok());
  auto moved = std::move(teacher).value();
  const auto again = on_device(moved, lesson);
  ASSERT_TRUE(succeeds(again.status()));
  expect_equal(again.value(), first.value());
}

TEST_F(DeviceTeacherTest, WithoutTriggersOrChunks) {
  const auto pair = ModelPair<__half>::make(testing::session_config(), 31);
  ASSERT_NE(pair, nullptr);
  auto teacher = DeviceTeacher<__half>::create(pair->gpu, kLimits);
  ASSERT_TRUE(succeeds(teacher.status()));
  const Lesson whole = lesson_of(100);
  for (const bool has_chunks : {false, true}) {
    for (const bool has_triggers : {false, true}) {
      Lesson lesson = whole;
      if (!has_chunks) lesson.ends.clear();
      if (!has_triggers) lesson.triggers.clear();
      const auto actual = on_device(teacher.value(), lesson);
      const auto expected = on_cpu<__half>(pair->cpu, lesson, KeyPooling::kMean);
      ASSERT_TRUE(succeeds(actual.status()));
      ASSERT_TRUE(succeeds(expected.status()));
      expect_close<__half>(actual.value(), expected.value());
    }
  }
}

TEST_F(DeviceTeacherTest, RefusesWhatDoesNotFit) {
  const auto pair = ModelPair<__half>::make(testing::session_config(), 31);
  ASSERT_NE(pair, nullptr);
  const auto create = [&](const DeviceTeacherLimits& limits) {
    return DeviceTeacher<__half>::create(pair->gpu, limits).status().code();
  };
  EXPECT_EQ(create({0, 10, 10}), StatusCode::kInvalidArgument);
  EXPECT_EQ(create({10, 65536, 10}), StatusCode::kInvalidArgument);
  EXPECT_EQ(create({10, 10, -1}), StatusCode::kInvalidArgument);

  auto teacher = DeviceTeacher<__half>::create(pair->gpu, {30, 3, 2});
  ASSERT_TRUE(succeeds(teacher.status()));
  const auto code = [&](const Ids& ids, const Positions& ends, const Positions& triggers) {
    return on_device(teacher.value(), {ids, ends, triggers}).status().code();
  };
  const Ids ids = tiny_text(30);
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  // The last trigger is dropped, and needs no room.
  EXPECT_EQ(code(ids, {10, 20, 30}, {9, 19, 29}), StatusCode::kOk);
  EXPECT_EQ(code(tiny_text(31), {}, {}), kInvalid);
  EXPECT_EQ(code(ids, {5, 10, 20, 30}, {}), kInvalid);
  EXPECT_EQ(code(ids, {}, {3, 9, 19}), kInvalid);
  EXPECT_EQ(code(ids, {31}, {}), kInvalid);
  EXPECT_EQ(code(ids, {9, 9}, {}), kInvalid);
  EXPECT_EQ(code(ids, {}, {30}), kInvalid);
  EXPECT_EQ(code({3, 64}, {}, {}), kInvalid);
  EXPECT_EQ(code({-1}, {}, {}), kInvalid);
}

TEST_F(DeviceTeacherTest, RefusesHeadsThatAttentionDoesNotKnow) {
  const auto pair = ModelPair<__half>::make(testing::tiny_config(), 31);
  ASSERT_NE(pair, nullptr);
  EXPECT_EQ(DeviceTeacher<__half>::create(pair->gpu, kLimits).status().code(),
            StatusCode::kUnsupported);
}

}  // namespace
}  // namespace chunkllm::cuda
