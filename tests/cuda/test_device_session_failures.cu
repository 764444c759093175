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
  // A block fails in the midst of work where the room that was there at the beginning has been
  // taken since: by what is read between two blocks. Errors of the device end a session in the same
  // place, but the sure ways to one break the context for the tests behind this one, too.
  constexpr std::int64_t kBlock = 2048;
  const auto reading = session(testing::tiny_token_bytes, 200 + kBlock + 150);
  ASSERT_NE(reading, nullptr);
  ASSERT_TRUE(succeeds(reading->prefill(tiny_text(200))));
  ASSERT_TRUE(succeeds(reading->finish_prompt().status()));
  const std::vector<std::int32_t> between = tiny_text(100);
  const Status failed = reading->prefill(tiny_text(kBlock + 100), [&](std::int64_t) {
    EXPECT_TRUE(succeeds(reading->prefill(between)));
    return true;
  });
  ASSERT_EQ(failed.code(), StatusCode::kInvalidArgument) << failed.message();
  EXPECT_EQ(reading->num_tokens(), 200 + kBlock + 100);

  const auto is_the_same = [&](const Status& status) {
    return status.code() == failed.code() && status.message() == failed.message();
  };
  const std::vector<std::int32_t> text = tiny_text(20);  // there is room for these
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
