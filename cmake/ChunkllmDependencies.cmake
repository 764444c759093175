# What every user of the headers needs, and the search for CUDA.

# Finds a package or stops with the name of the Debian package that has it.
macro(chunkllm_require package version debian_package)
  find_package(${package} ${version} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "chunkllm needs ${package} ${version} or newer. "
                        "On Debian: apt-get install ${debian_package}")
  endif()
endmacro()

chunkllm_require(Eigen3 3.4 libeigen3-dev)
chunkllm_require(nlohmann_json 3.11 nlohmann-json3-dev)
find_package(Threads REQUIRED)

set(chunkllm_with_cuda OFF)
if(CHUNKLLM_ENABLE_CUDA)
  find_package(CUDAToolkit 12.0 QUIET)
  if(NOT CUDAToolkit_FOUND OR NOT CUDAToolkit_NVCC_EXECUTABLE)
    set(chunkllm_no_cuda "nvcc 12.0 or newer was not found")
  elseif(NOT TARGET CUDA::cublas)
    set(chunkllm_no_cuda "the CUDA toolkit at ${CUDAToolkit_BIN_DIR} has no cuBLAS")
  else()
    set(chunkllm_with_cuda ON)
    set(chunkllm_cuda_found "CUDA ${CUDAToolkit_VERSION} found (${CUDAToolkit_NVCC_EXECUTABLE})")
  endif()
  if(NOT chunkllm_with_cuda AND CHUNKLLM_ENABLE_CUDA STREQUAL "AUTO")
    message(STATUS "chunkllm: CUDA part skipped: ${chunkllm_no_cuda}")
  elseif(NOT chunkllm_with_cuda)
    message(FATAL_ERROR "CHUNKLLM_ENABLE_CUDA is ON, but ${chunkllm_no_cuda}")
  endif()
else()
  message(STATUS "chunkllm: CUDA part skipped: CHUNKLLM_ENABLE_CUDA is OFF")
endif()
