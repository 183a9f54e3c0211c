# SPDX-License-Identifier: MIT
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/butterfly")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/butterfly" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/butterfly")
install(TARGETS butterfly butterfly_testing butterfly_cuda EXPORT butterflyTargets)
install(EXPORT butterflyTargets NAMESPACE butterfly:: DESTINATION "${package_dir}")

configure_file("${PROJECT_SOURCE_DIR}/cmake/butterflyConfig.cmake.in" "${PROJECT_BINARY_DIR}/butterflyConfig.cmake"
               @ONLY)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/butterflyConfigVersion.cmake" COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/butterflyConfig.cmake" "${PROJECT_BINARY_DIR}/butterflyConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/butterflyDependencies.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/butterflyKernels.cmake" DESTINATION "${package_dir}")
