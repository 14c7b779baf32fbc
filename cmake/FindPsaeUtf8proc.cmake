# utf8proc as the imported target psae::utf8proc. Debian's package has a file for pkg-config only.
find_path(PSAE_UTF8PROC_INCLUDE_DIR utf8proc.h)
find_library(PSAE_UTF8PROC_LIBRARY utf8proc)
mark_as_advanced(PSAE_UTF8PROC_INCLUDE_DIR PSAE_UTF8PROC_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PsaeUtf8proc REQUIRED_VARS PSAE_UTF8PROC_LIBRARY PSAE_UTF8PROC_INCLUDE_DIR
                                  REASON_FAILURE_MESSAGE "on Debian it is the package libutf8proc-dev")

if(PsaeUtf8proc_FOUND AND NOT TARGET psae::utf8proc)
    add_library(psae::utf8proc UNKNOWN IMPORTED)
    set_target_properties(psae::utf8proc PROPERTIES IMPORTED_LOCATION "${PSAE_UTF8PROC_LIBRARY}"
                                                    INTERFACE_INCLUDE_DIRECTORIES "${PSAE_UTF8PROC_INCLUDE_DIR}")
    if(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL)
        set_target_properties(psae::utf8proc PROPERTIES IMPORTED_GLOBAL TRUE)
    endif()
endif()
