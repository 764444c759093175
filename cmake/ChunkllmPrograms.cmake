# Flags of the project's own programs. Nothing here reaches a user of chunkllm::chunkllm.

include(CheckCXXCompilerFlag)

add_library(chunkllm_program_options INTERFACE)
set(chunkllm_warnings -Wall -Wextra -Wconversion -Wshadow)
# g++ 12 reports its own AVX-512 intrinsics as uninitialised (GCC bug 105593) and an overlap in
# `"literal" + std::string` (105651); both are mended in 13.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  list(APPEND chunkllm_warnings -Wno-maybe-uninitialized -Wno-uninitialized -Wno-restrict)
endif()
if(CHUNKLLM_WERROR)
  list(APPEND chunkllm_warnings -Werror)
endif()
target_compile_options(chunkllm_program_options
                       INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${chunkllm_warnings}>")
if(CHUNKLLM_SANITIZE)
  # -O1 keeps the tests fast enough to run whole; -g1 keeps line numbers at a third of -g's size.
  target_compile_options(
    chunkllm_program_options
    INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-O1;-g1;-fno-omit-frame-pointer>"
              "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=all>")
  target_link_options(chunkllm_program_options INTERFACE -fsanitize=address,undefined)
endif()
if(CHUNKLLM_LIBFUZZER AND NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  message(FATAL_ERROR "CHUNKLLM_LIBFUZZER needs clang, not ${CMAKE_CXX_COMPILER_ID}")
endif()

set(chunkllm_native_flags)
if(CHUNKLLM_NATIVE)
  check_cxx_compiler_flag(-march=native chunkllm_has_march_native)
  if(chunkllm_has_march_native)
    set(chunkllm_native_flags -march=native)
  endif()
endif()

# chunkllm_add_program(<target> [PORTABLE] <source>...): one of the project's own executables.
# PORTABLE: for the compiler's baseline instruction set even where CHUNKLLM_NATIVE is ON.
function(chunkllm_add_program target)
  cmake_parse_arguments(PARSE_ARGV 1 program "PORTABLE" "" "")
  add_executable(${target} ${program_UNPARSED_ARGUMENTS})
  target_link_libraries(${target} PRIVATE chunkllm::chunkllm chunkllm_program_options)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  if(NOT program_PORTABLE)
    target_compile_options(${target}
                           PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${chunkllm_native_flags}>")
  endif()
endfunction()

if(NOT chunkllm_with_cuda)
  return()
endif()

# Users enable CUDA themselves; the project's own device programs need it here. They are built for
# CMAKE_CUDA_ARCHITECTURES where the caller gives it, else for CHUNKLLM_CUDA_ARCHITECTURES, and the
# long ones for CHUNKLLM_LONG_CUDA_ARCHITECTURES where that is set.
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "${CUDAToolkit_NVCC_EXECUTABLE}")
endif()
set(chunkllm_long_architectures "${CMAKE_CUDA_ARCHITECTURES}")
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "${CHUNKLLM_CUDA_ARCHITECTURES}")
  set(chunkllm_long_architectures "${CHUNKLLM_LONG_CUDA_ARCHITECTURES}")
  if(NOT chunkllm_long_architectures)
    set(chunkllm_long_architectures "${CHUNKLLM_CUDA_ARCHITECTURES}")
  endif()
endif()
enable_language(CUDA)

# The host compiler's false alarms, as above.
set(chunkllm_host_exceptions)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  set(chunkllm_host_exceptions ",-Wno-maybe-uninitialized,-Wno-uninitialized,-Wno-restrict")
endif()

# Tests and benchmarks of the device do little on the host, but hold much host code: half of the
# time that it takes to compile is saved. For the calling folder; device code is not touched.
macro(chunkllm_compile_host_code_quickly)
  string(REPLACE "-O3" "-O1" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")
endmacro()

# chunkllm_use_cuda(<target> [LONG]): device sources of a program. LONG: it takes minutes to compile.
function(chunkllm_use_cuda target)
  cmake_parse_arguments(PARSE_ARGV 1 device "LONG" "" "")
  target_link_libraries(${target} PRIVATE chunkllm::cuda)
  set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY Shared)
  if(device_LONG)
    set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${chunkllm_long_architectures}")
  endif()
  # Eigen 3.4 marks functions for the device that nvcc says it cannot mark (20011 to 20015); nvcc
  # takes the assignment of a [[nodiscard]] type for one that is ignored (2810).
  target_compile_options(
    ${target}
    PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;--diag-suppress=2810,20011,20012,20013,20014,20015>"
            "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${CHUNKLLM_WERROR}>>:-Werror=all-warnings>"
            "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra${chunkllm_host_exceptions}>")
endfunction()
