# Configures, builds and runs the consumer project in a fresh folder.

file(REMOVE_RECURSE "${BUILD}")
set(arguments -S "${SOURCE}" -B "${BUILD}" -G "${GENERATOR}" "-DWAY=${WAY}" "-DKIND=${KIND}"
              "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}")
if(WAY STREQUAL "install")
  list(APPEND arguments "-DCMAKE_PREFIX_PATH=${PREFIX}")
else()
  list(APPEND arguments "-DCHUNKLLM_SOURCE=${CHUNKLLM_SOURCE}")
endif()
if(KIND STREQUAL "cuda")
  # Off by default below another project.
  list(APPEND arguments -DCHUNKLLM_ENABLE_CUDA=ON "-DCMAKE_CUDA_COMPILER=${CUDA_COMPILER}"
       "-DCMAKE_CUDA_ARCHITECTURES=80-real\;90a-real")
endif()
execute_process(COMMAND ${CMAKE_COMMAND} ${arguments} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build "${BUILD}" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${BUILD}/consumer" COMMAND_ERROR_IS_FATAL ANY)
