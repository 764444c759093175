# The installed program runs, and the adapters that ship, all of them and nothing else, are there.

execute_process(
  COMMAND "${PREFIX}/${BINDIR}/chunkllm" --version
  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
if(NOT output STREQUAL "chunkllm ${VERSION}\n")
  message(FATAL_ERROR "chunkllm --version says '${output}', expected 'chunkllm ${VERSION}'")
endif()

file(GLOB shipped RELATIVE "${CHUNKLLM_SOURCE}/adapters" "${CHUNKLLM_SOURCE}/adapters/*.safetensors")
file(GLOB_RECURSE installed RELATIVE "${PREFIX}/${DATADIR}/chunkllm/adapters"
     "${PREFIX}/${DATADIR}/chunkllm/*")
if(NOT installed STREQUAL shipped)
  message(FATAL_ERROR "installed adapters: '${installed}', expected '${shipped}'")
endif()
