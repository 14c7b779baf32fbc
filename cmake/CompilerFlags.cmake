# psae_development: what the programs, tests and benchmarks of this repository are compiled with. (-O3 comes with Release.)
add_library(psae_development INTERFACE)
target_link_libraries(psae_development INTERFACE psae::psae psae::native)
# -Wrestrict: g++ 12 reports string concatenation falsely (GCC bug 105651).
set(warnings -Wall -Wextra)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND warnings -Wno-restrict)
endif()
if(PSAE_WERROR)
    list(APPEND warnings -Werror)
    target_compile_options(psae_development INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
foreach(warning IN LISTS warnings)
    target_compile_options(psae_development INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${warning}>
                                                      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${warning}>)
endforeach()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    # A loop under `omp simd` that clang leaves scalar is slower, not wrong.
    target_compile_options(psae_development INTERFACE -Wno-pass-failed)
endif()

# psae_sanitized: AddressSanitizer and UBSan; the first finding ends the program with an error.
add_library(psae_sanitized INTERFACE)
target_compile_options(psae_sanitized INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
# g++ with sanitizers reports uninitialised members inside its own <regex> and <functional>.
target_compile_options(psae_sanitized INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
target_link_options(psae_sanitized INTERFACE -fsanitize=address,undefined)
if(PSAE_SANITIZE)
    target_link_libraries(psae_development INTERFACE psae_sanitized)
endif()
