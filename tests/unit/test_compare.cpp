// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "support/compare.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "support/guarded_buffer.hpp"

namespace chunkllm::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

bool within(std::vector<float> actual, std::vector<double> expected, double bound) {
  return static_cast<bool>(all_within(actual, expected, bound));
}

TEST(AllWithin, AcceptsWhatIsClose) {
  EXPECT_TRUE(within({}, {}, 0.0));
  EXPECT_TRUE(within({1.0F, -2.0F}, {1.0, -2.0}, 0.0));
  EXPECT_TRUE(within({1.5F}, {1.0}, 0.5));
  EXPECT_TRUE(within({kInf, -kInf}, {kInf, -kInf}, 0.0));
  EXPECT_TRUE(within({kNan}, {kNan}, 0.0));
}

TEST(AllWithin, RejectsNanInfinityAndSigns) {
  EXPECT_FALSE(within({kNan}, {1.0}, 1e300));
  EXPECT_FALSE(within({1.0F}, {static_cast<double>(kNan)}, 1e300));
  EXPECT_FALSE(within({kInf}, {1.0}, 1e300));
  EXPECT_FALSE(within({kInf}, {-static_cast<double>(kInf)}, 1e300));
  EXPECT_FALSE(within({-1.0F}, {1.0}, 1.0));
  EXPECT_FALSE(within({0.0F}, {1.0}, 0.5));    // too small
  EXPECT_FALSE(within({-3.0F}, {-2.0}, 0.5));  // both negative
  EXPECT_FALSE(within({1.0F}, {2.0}, static_cast<double>(kNan)));
  EXPECT_FALSE(within({1.0F}, {2.0}, -1.0));
  EXPECT_FALSE(within({1.0F, 2.0F}, {1.0}, 10.0));
}

TEST(AllWithin, NamesTheWorst) {
  const std::vector<float> actual = {1.0F, 2.5F, 9.0F, 4.1F};
  const std::vector<double> expected = {1.0, 2.0, 3.0, 4.0};
  const std::string message = all_within(actual, expected, 0.2).message();
  EXPECT_NE(message.find("2 of 4"), std::string::npos) << message;
  EXPECT_NE(message.find("worst is 2: 9, expected 3"), std::string::npos) << message;
  const std::vector<float> with_nan = {100.0F, kNan};
  EXPECT_NE(std::string(all_within(with_nan, std::vector<double>{0.0, 0.0}, 0.2).message())
                .find("worst is 1: nan"),
            std::string::npos);
}

TEST(GuardedBuffer, NoticesWritesOutside) {
  GuardedBuffer buffer(5);
  EXPECT_TRUE(buffer.intact());
  EXPECT_TRUE(buffer.has_unwritten());
  for (float& value : buffer.span()) value = 0.0F;
  EXPECT_TRUE(buffer.intact());
  EXPECT_FALSE(buffer.has_unwritten());
  buffer.data()[5] = kNan;  // another NaN than the fence's
  EXPECT_FALSE(buffer.intact());
  GuardedBuffer before(3);
  before.data()[-1] = 0.0F;
  EXPECT_FALSE(before.intact());
}

}  // namespace
}  // namespace chunkllm::testing
