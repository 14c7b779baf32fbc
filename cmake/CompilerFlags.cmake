# psae_development: what the programs, tests and benchmarks of this repository are compiled with. (-O3 comes with Release.)
add_library(psae_development INTERFACE)
target_link_libraries(psae_development INTERFACE psae::psae psae::native)
# -Wrestrict: g++ 12 reports string concatenation falsely (GCC bug 105651).
target_compile_options(psae_development INTERFACE -Wall -Wextra $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> $<$<BOOL:${PSAE_WERROR}>:-Werror>)
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
