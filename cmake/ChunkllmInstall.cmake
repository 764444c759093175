# Install rules. Components: chunkllm_headers, chunkllm_cuda, chunkllm_program.

include(CMakePackageConfigHelpers)

set(chunkllm_config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/chunkllm")

install(
  TARGETS chunkllm
  EXPORT chunkllmTargets
  FILE_SET headers DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT chunkllm_headers)
install(
  EXPORT chunkllmTargets
  NAMESPACE chunkllm::
  DESTINATION "${chunkllm_config_dir}"
  COMPONENT chunkllm_headers)

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/chunkllmConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/cmake/chunkllmConfig.cmake"
  INSTALL_DESTINATION "${chunkllm_config_dir}")
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/cmake/chunkllmConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(
  FILES "${PROJECT_BINARY_DIR}/cmake/chunkllmConfig.cmake"
        "${PROJECT_BINARY_DIR}/cmake/chunkllmConfigVersion.cmake"
  DESTINATION "${chunkllm_config_dir}"
  COMPONENT chunkllm_headers)
install(
  FILES "${PROJECT_SOURCE_DIR}/LICENSE"
  DESTINATION "${CMAKE_INSTALL_DOCDIR}"
  COMPONENT chunkllm_headers)

# chunkllm::cuda has an export file of its own: a package without it refuses COMPONENTS cuda.
if(TARGET chunkllm_cuda)
  install(
    TARGETS chunkllm_cuda
    EXPORT chunkllmCudaTargets
    FILE_SET cuda_headers DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT chunkllm_cuda
    FILE_SET kernels DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT chunkllm_cuda)
  install(
    EXPORT chunkllmCudaTargets
    NAMESPACE chunkllm::
    DESTINATION "${chunkllm_config_dir}"
    COMPONENT chunkllm_cuda)
endif()

if(TARGET chunkllm_cli)
  # The headers can be installed from a tree in which nothing was built.
  install(TARGETS chunkllm_cli RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}"
                                       COMPONENT chunkllm_program OPTIONAL)
  install(
    CODE "if(NOT EXISTS \"$<TARGET_FILE:chunkllm_cli>\")
      message(STATUS \"Not installed: ${CMAKE_INSTALL_BINDIR}/chunkllm, which was not built\")
    endif()"
    COMPONENT chunkllm_program)
  # The program finds them there; see also CHUNKLLM_DATADIR in examples/CMakeLists.txt.
  if(IS_DIRECTORY "${PROJECT_SOURCE_DIR}/adapters")
    install(
      DIRECTORY "${PROJECT_SOURCE_DIR}/adapters/"
      DESTINATION "${CMAKE_INSTALL_DATADIR}/chunkllm/adapters"
      COMPONENT chunkllm_program
      FILES_MATCHING
      PATTERN "*.safetensors")
  endif()
endif()
