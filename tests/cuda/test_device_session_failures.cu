// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/cuda/device_session.hpp"
#include "cuda/support/device.hpp"
#include "cuda/support/session_pair.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm::cuda {
namespace {

using testing::succeeds;
using testing::tiny_text;

class DeviceSessionFailures : public testing::DeviceTest {
 protected:
  void SetUp() override {
    testing::DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    models_ = testing::ModelPair<__half>::make(testing::session_config(), /*seed=*/1);
    ASSERT_NE(models_, nullptr);
  }

  std::unique_ptr<DeviceSession<__half>> session(DeviceSession<__half>::TokenBytes token_bytes,
                                                 std::int64_t room) {
    SessionOptions options;
    options.chunk.budget.tokens = 96;
    options.chunk.guards = {2, 24};
    auto made = DeviceSession<__half>::create(models_->gpu,
                                              DeviceScorer<__half>::mean_key(models_->gpu.config()),
                                              std::move(token_bytes), options);
    EXPECT_TRUE(succeeds(made.status()));
    if (!made.ok()) return nullptr;
    EXPECT_TRUE(succeeds(made.value()->reserve(room)));
    return std::move(made).value();
  }

  std::unique_ptr<testing::ModelPair<__half>> models_;
};

TEST_F(DeviceSessionFailures, AFailedBlockEndsTheSession) {
  // A block's launches are told of an error that others leave behind while it is planned.
  bool breaks = false;
  const auto reading = session(
      [&](std::int32_t id) {
        void* memory = nullptr;
        if (breaks) EXPECT_NE(cudaMalloc(&memory, std::size_t{1} << 62), cudaSuccess);
        return testing::tiny_token_bytes(id);
      },
      600);
  ASSERT_NE(reading, nullptr);
  const std::vector<std::int32_t> text = tiny_text(200);
  ASSERT_TRUE(succeeds(reading->prefill(text)));
  ASSERT_TRUE(succeeds(reading->finish_prompt().status()));
  breaks = true;
  const Status failed = reading->prefill(text);
  breaks = false;
  ASSERT_EQ(failed.code(), StatusCode::kResourceExhausted) << failed.message();

  const auto is_the_same = [&](const Status& status) {
    return status.code() == failed.code() && status.message() == failed.message();
  };
  EXPECT_TRUE(is_the_same(reading->prefill(text)));
  EXPECT_TRUE(is_the_same(reading->step(3).status()));
  EXPECT_TRUE(is_the_same(reading->finish_prompt().status()));
  EXPECT_TRUE(is_the_same(reading->rollback(200)));
  EXPECT_TRUE(is_the_same(reading->reserve(600)));
  EXPECT_TRUE(is_the_same(reading->read(text, ReadMode::kAsDecode, {}, {})));

  const auto other = session(testing::tiny_token_bytes, 600);  // nothing is left of it elsewhere
  ASSERT_NE(other, nullptr);
  EXPECT_TRUE(succeeds(other->prefill(text)));
  EXPECT_TRUE(succeeds(other->finish_prompt().status()));
}

TEST_F(DeviceSessionFailures, RoomThatIsMissingIsTold) {
  const auto reading = session(testing::tiny_token_bytes, 600);
  ASSERT_NE(reading, nullptr);
  const SessionMemory memory = reading->memory();
  EXPECT_GT(memory.workspace, std::int64_t{32} << 20);  // cuBLAS's alone
  EXPECT_EQ(memory.kv, 600 * reading->kv_bytes_per_token());
  EXPECT_EQ(reading->reserve(601).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(succeeds(reading->prefill(tiny_text(100))));  // a wrong argument is no failure
}

TEST_F(DeviceSessionFailures, AnotherDeviceIsRefused) {
  int count = 0;
  ASSERT_TRUE(succeeds(cudaGetDeviceCount(&count)));
  if (count < 2) GTEST_SKIP() << "needs two devices";
  const auto reading = session(testing::tiny_token_bytes, 100);
  ASSERT_NE(reading, nullptr);
  ASSERT_TRUE(succeeds(cudaSetDevice(1)));
  const Status refused = reading->prefill(tiny_text(20));
  ASSERT_TRUE(succeeds(cudaSetDevice(0)));
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.message(),
            "the session is of device 0, but device 1 is current: expected cudaSetDevice(0)");
  EXPECT_TRUE(succeeds(reading->prefill(tiny_text(20))));
}

TEST_F(DeviceSessionFailures, RopeTablesAreShared) {
  const auto& backbone = models_->gpu;
  const auto longest = backbone.rope_table(500, stream_);
  ASSERT_TRUE(succeeds(longest.status()));
  EXPECT_EQ(longest.value()->count(), 500);
  const auto shorter = backbone.rope_table(20, stream_);
  ASSERT_TRUE(succeeds(shorter.status()));
  EXPECT_EQ(shorter.value(), longest.value());
}

TEST(DecodeStepShapes, HeadsWithoutKernelsAreRefused) {
  BackboneConfig config = testing::session_config();
  EXPECT_TRUE(succeeds(DecodeStep<__half>::check_shapes(config)));
  config.head_dim = 80;
  EXPECT_EQ(DecodeStep<__half>::check_shapes(config).code(), StatusCode::kUnsupported);
  config.head_dim = 128;
  config.num_heads = 34;
  config.num_kv_heads = 2;
  EXPECT_EQ(DecodeStep<__half>::check_shapes(config).message(),
            "on the device, attention with head_dim 128 and 17 query heads a KV head; supported "
            "are head_dim 64, 96, 128 and 256, and up to 16 query heads");
}

}  // namespace
}  // namespace chunkllm::cuda
