# chunkllm::chunkllm and, where CUDA was found, chunkllm::cuda.

file(GLOB_RECURSE chunkllm_headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/include/chunkllm/*.hpp")
set(chunkllm_cuda_headers "${chunkllm_headers}")
list(FILTER chunkllm_cuda_headers INCLUDE REGEX "/include/chunkllm/cuda/")
list(FILTER chunkllm_headers EXCLUDE REGEX "/include/chunkllm/cuda/")

add_library(chunkllm INTERFACE)
add_library(chunkllm::chunkllm ALIAS chunkllm)
target_sources(
  chunkllm
  INTERFACE FILE_SET headers TYPE HEADERS
            BASE_DIRS "${PROJECT_SOURCE_DIR}/include"
            FILES ${chunkllm_headers})
target_compile_features(chunkllm INTERFACE cxx_std_20)
# The library hands fixed tiles to its own pool: Eigen must not start threads inside a tile.
target_compile_definitions(chunkllm INTERFACE EIGEN_DONT_PARALLELIZE)
target_link_libraries(chunkllm INTERFACE Eigen3::Eigen nlohmann_json::nlohmann_json
                                         Threads::Threads)

if(chunkllm_with_cuda)
  add_library(chunkllm_cuda INTERFACE)
  add_library(chunkllm::cuda ALIAS chunkllm_cuda)
  set_target_properties(chunkllm_cuda PROPERTIES EXPORT_NAME cuda)
  file(GLOB_RECURSE chunkllm_kernels CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/*.cuh")
  if(chunkllm_kernels)
    message(STATUS "chunkllm: ${chunkllm_cuda_found}")
  else()
    message(STATUS "chunkllm: ${chunkllm_cuda_found}; chunkllm::cuda holds no kernels in this version")
  endif()
  target_sources(
    chunkllm_cuda
    INTERFACE FILE_SET cuda_headers TYPE HEADERS
              BASE_DIRS "${PROJECT_SOURCE_DIR}/include"
              FILES ${chunkllm_cuda_headers}
              FILE_SET kernels TYPE HEADERS
              BASE_DIRS "${PROJECT_SOURCE_DIR}/kernels"
              FILES ${chunkllm_kernels})
  # CMake 3.25 does not know C++20 for nvcc, so the flag is given here. A consumer whose CMake knows
  # it and that sets CUDA_STANDARD to 20 gets the flag from there, once.
  target_compile_options(
    chunkllm_cuda
    INTERFACE
      "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<NOT:$<STREQUAL:$<TARGET_PROPERTY:CUDA_STANDARD>,20>>>:-std=c++20>"
  )
  target_link_libraries(chunkllm_cuda INTERFACE chunkllm CUDA::cudart CUDA::cublas)
endif()
