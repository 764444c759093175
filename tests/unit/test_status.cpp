// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/core/status.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

namespace chunkllm {
namespace {

Result<int> parse_digit(char c) {
  if (c < '0' || c > '9') return invalid_argument("not a digit");
  return c - '0';
}

Status add_digit(char c, int& sum) {
  CHUNKLLM_ASSIGN_OR_RETURN(const int digit, parse_digit(c));
  sum += digit;
  CHUNKLLM_RETURN_IF_ERROR(sum > 9 ? out_of_range("sum") : Status());
  return {};
}

TEST(Status, DefaultIsOk) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kOk);
  EXPECT_EQ(status.message(), "");
}

TEST(Status, ContextGoesInFrontOfErrorsOnly) {
  EXPECT_EQ(not_found("b").with_context("a").message(), "a: b");
  EXPECT_EQ(not_found("b").with_context("a").code(), StatusCode::kNotFound);
  EXPECT_TRUE(Status().with_context("a").ok());
  EXPECT_EQ(Status().with_context("a").message(), "");
}

TEST(Status, EveryCodeHasAName) {
  for (int code = 0; code <= static_cast<int>(StatusCode::kInternal); ++code) {
    EXPECT_NE(to_string(static_cast<StatusCode>(code)), "unknown") << code;
  }
}

TEST(Result, HoldsAValueOrAStatus) {
  EXPECT_TRUE(parse_digit('7').ok());
  EXPECT_EQ(parse_digit('7').value(), 7);
  EXPECT_TRUE(parse_digit('7').status().ok());
  EXPECT_FALSE(parse_digit('x').ok());
  EXPECT_EQ(parse_digit('x').status().message(), "not a digit");
}

TEST(Result, AnOkStatusWithoutAValueIsAnError) {
  const Result<int> result = Status();
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kInternal);
}

TEST(Result, MovesValuesThatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(3);
  const std::unique_ptr<int> value = std::move(result).value();
  EXPECT_EQ(*value, 3);
}

TEST(Result, MacrosReturnTheFirstError) {
  int sum = 0;
  EXPECT_TRUE(add_digit('4', sum).ok());
  EXPECT_EQ(add_digit('x', sum).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(sum, 4);
  EXPECT_EQ(add_digit('6', sum).code(), StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace chunkllm
