# Configures a project whose find_package(chunkllm) must fail, and looks for the reason.

string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" _ "${VERSION}")
math(EXPR next_minor "${CMAKE_MATCH_2} + 1")
if(REQUEST STREQUAL "cuda_component")
  set(package_arguments COMPONENTS cuda)
  set(reason "installed without CUDA")
elseif(REQUEST STREQUAL "unknown_component")
  set(package_arguments COMPONENTS no_such_part)
  set(reason "no_such_part")
elseif(REQUEST STREQUAL "next_minor_version")
  set(package_arguments "${CMAKE_MATCH_1}.${next_minor}")
  set(reason "compatible with requested version")
endif()

file(REMOVE_RECURSE "${BUILD}")
execute_process(
  COMMAND ${CMAKE_COMMAND} -S "${SOURCE}" -B "${BUILD}" -G "${GENERATOR}"
          "-DCMAKE_PREFIX_PATH=${PREFIX}" "-DPACKAGE_ARGUMENTS=${package_arguments}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
string(REGEX REPLACE "[ \n]+" " " output "${output}")
if(result EQUAL 0)
  message(FATAL_ERROR "find_package(chunkllm ${package_arguments}) was not refused")
elseif(NOT output MATCHES "${reason}")
  message(FATAL_ERROR "refused, but '${reason}' is not in: ${output}")
endif()
