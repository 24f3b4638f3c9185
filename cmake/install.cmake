# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` puts where: the C library with find_package(bonsai) and pkg-config support, the program, and,
# as a component of its own, the files of the Python wheel.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/bonsai)
install(TARGETS bonsai EXPORT bonsai-targets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_SOURCE_DIR}/engine/include/bonsai.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT bonsai-targets NAMESPACE bonsai:: DESTINATION ${package_dir})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/bonsai-config.cmake.in
    ${PROJECT_BINARY_DIR}/bonsai-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/bonsai-config-version.cmake
    VERSION ${BONSAI_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/bonsai-config.cmake
    ${PROJECT_BINARY_DIR}/bonsai-config-version.cmake DESTINATION ${package_dir})

# Paths relative to the .pc file, so that an installed tree may be moved.
file(RELATIVE_PATH pc_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${CMAKE_CURRENT_LIST_DIR}/bonsai.pc.in ${PROJECT_BINARY_DIR}/bonsai.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/bonsai.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES ${BONSAI_DEMO_MODEL} ${PROJECT_SOURCE_DIR}/models/NOTICE.md
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bonsai)

if(TARGET bonsai-cli)
    install(TARGETS bonsai-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

# The wheel: generated declarations and the library beside the Python files (which scikit-build-core adds itself), and the
# program among the scripts. One plain file for the library, as wheels know no symbolic links.
set(cdef ${PROJECT_BINARY_DIR}/_cdef.py)
add_custom_command(OUTPUT ${cdef}
    COMMAND ${CMAKE_COMMAND} -DHEADER=${PROJECT_SOURCE_DIR}/engine/include/bonsai.h -DOUTPUT=${cdef}
            -P ${PROJECT_SOURCE_DIR}/python/make_cdef.cmake
    DEPENDS ${PROJECT_SOURCE_DIR}/engine/include/bonsai.h ${PROJECT_SOURCE_DIR}/python/make_cdef.cmake)
add_custom_target(bonsai-python-cdef ALL DEPENDS ${cdef})
install(FILES ${cdef} DESTINATION bonsai COMPONENT python EXCLUDE_FROM_ALL)
install(PROGRAMS $<TARGET_FILE:bonsai> DESTINATION bonsai COMPONENT python EXCLUDE_FROM_ALL
    RENAME ${CMAKE_SHARED_LIBRARY_PREFIX}bonsai${CMAKE_SHARED_LIBRARY_SUFFIX})
if(TARGET bonsai-cli AND DEFINED SKBUILD_SCRIPTS_DIR)
    install(PROGRAMS $<TARGET_FILE:bonsai-cli> DESTINATION ${SKBUILD_SCRIPTS_DIR}
        COMPONENT python EXCLUDE_FROM_ALL)
endif()
if(DEFINED SKBUILD_DATA_DIR)
    install(FILES ${BONSAI_DEMO_MODEL} DESTINATION ${SKBUILD_DATA_DIR}/share/bonsai
        COMPONENT python EXCLUDE_FROM_ALL)
endif()
