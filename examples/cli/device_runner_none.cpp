// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// In place of device_runner.cu where the program is built without CUDA.
#include "device_runner.hpp"

namespace chunkllm::cli {

Status check_cuda() {
  return unsupported("--device cuda: this build has no CUDA support, expected cpu");
}
Result<DeviceFacts> device_facts() {
  return check_cuda();
}
Result<std::unique_ptr<const DeviceRunner>> load_device_runner(const ModelFiles& /*files*/,
                                                               KvKind /*kv*/, ThreadPool& /*pool*/,
                                                               const LoadProgress& /*progress*/) {
  return check_cuda();
}
Result<std::unique_ptr<const DeviceRunner>> random_device_runner(const BackboneConfig& /*shape*/,
                                                                 KvKind /*kv*/) {
  return check_cuda();
}

}  // namespace chunkllm::cli
