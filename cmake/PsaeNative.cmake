# The target psae::native: flags for the vector units of the machine that builds, and two that let loops over sqrt and
# comparisons vectorise without changing a result. Link it to a program that runs where it is built; leave it out of one that
# travels. It is part of the installed package, where the machine of the one who uses the package counts.
#
# -march=native alone is not enough: compilers older than the processor take it for its predecessor (g++ 12 on Zen 4 and 5).
# What /proc/cpuinfo shows is what processor, hypervisor and kernel allow together, so exactly that is switched on, and what is
# missing there is switched off. The flags then also name the machine: a build folder that moves to another one is rebuilt.

if(NOT DEFINED PSAE_NATIVE)
    set(PSAE_NATIVE ON)
endif()

function(psae_native_flags result)
    include(CheckCXXCompilerFlag)
    set(${result} "" PARENT_SCOPE)
    if(CMAKE_CROSSCOMPILING)
        return()
    endif()
    set(flags "")
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND EXISTS /proc/cpuinfo)
        file(STRINGS /proc/cpuinfo lines REGEX "^flags[ \t]*:" LIMIT_COUNT 1)
        if(lines)
            foreach(pair IN ITEMS avx:avx f16c:f16c fma:fma avx2:avx2 bmi1:bmi bmi2:bmi2
                    avx512f:avx512f avx512cd:avx512cd avx512dq:avx512dq avx512bw:avx512bw avx512vl:avx512vl
                    avx512ifma:avx512ifma avx512vbmi:avx512vbmi avx512_vbmi2:avx512vbmi2 avx512_vnni:avx512vnni
                    avx512_bitalg:avx512bitalg avx512_vpopcntdq:avx512vpopcntdq avx512_bf16:avx512bf16)
                string(REPLACE ":" ";" pair ${pair})
                list(GET pair 0 in_cpuinfo)
                list(GET pair 1 in_compiler)
                if("${lines} " MATCHES "[ \t]${in_cpuinfo} ")
                    list(APPEND flags -m${in_compiler})
                else()
                    list(APPEND flags -mno-${in_compiler})
                endif()
            endforeach()
            # Compilers prefer vectors of 256 bits even where 512 are there; the processors this is for lose nothing by them.
            if("${lines} " MATCHES "[ \t]avx512f ")
                list(APPEND flags -mprefer-vector-width=512)
            endif()
        endif()
    endif()
    # One trial of all flags together; a compiler that lacks one of them gets -march=native only.
    list(PREPEND flags -march=native)
    string(REPLACE ";" " " joined "${flags}")
    string(MD5 key "${joined} ${CMAKE_CXX_COMPILER}")
    check_cxx_compiler_flag("${joined}" PSAE_ACCEPTS_${key})
    if(PSAE_ACCEPTS_${key})
        set(${result} ${flags} PARENT_SCOPE)
        return()
    endif()
    check_cxx_compiler_flag(-march=native PSAE_ACCEPTS_MARCH_NATIVE)
    if(PSAE_ACCEPTS_MARCH_NATIVE)
        set(${result} -march=native PARENT_SCOPE)
    endif()
endfunction()

if(NOT TARGET psae::native)
    add_library(psae::native INTERFACE IMPORTED GLOBAL)
    if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
        set(psae_native_flags_here "")
        if(PSAE_NATIVE)
            psae_native_flags(psae_native_flags_here)
        endif()
        # What nvcc leaves to the C++ compiler gets them too: the same templates must not be compiled in two ways.
        foreach(flag IN LISTS psae_native_flags_here ITEMS -fno-math-errno -fno-trapping-math)
            target_compile_options(psae::native INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${flag}>
                                                          $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${flag}>)
        endforeach()
    endif()
endif()
