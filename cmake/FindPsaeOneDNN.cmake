# oneDNN as the imported target psae::onednn. Debian's own package file for CMake is not used: it asks for the development
# files of OpenCL, which nothing here needs.
find_path(PSAE_ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.h)
find_library(PSAE_ONEDNN_LIBRARY dnnl)
mark_as_advanced(PSAE_ONEDNN_INCLUDE_DIR PSAE_ONEDNN_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PsaeOneDNN REQUIRED_VARS PSAE_ONEDNN_LIBRARY PSAE_ONEDNN_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "on Debian it is the package libdnnl-dev")

if(PsaeOneDNN_FOUND AND NOT TARGET psae::onednn)
    add_library(psae::onednn UNKNOWN IMPORTED)
    set_target_properties(psae::onednn PROPERTIES IMPORTED_LOCATION "${PSAE_ONEDNN_LIBRARY}"
                                                  INTERFACE_INCLUDE_DIRECTORIES "${PSAE_ONEDNN_INCLUDE_DIR}")
    if(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL)
        set_target_properties(psae::onednn PROPERTIES IMPORTED_GLOBAL TRUE)
    endif()
endif()
