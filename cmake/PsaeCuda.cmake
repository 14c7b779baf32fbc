# The target psae::cuda: psae::psae for sources that nvcc compiles and that include <psae/cuda.hpp>. With PSAE_CUDA=AUTO it is
# made where CUDA 13 or newer and cuBLASLt are found; with ON their absence is an error. A project that takes psae in as a folder
# enables the language CUDA itself.
#
# CMake 3.25 takes no CMAKE_CUDA_STANDARD of 20, and `native` for the architectures fails where there is no GPU.
include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # it may have been installed since
endif()
check_language(CUDA)
set(problem "")
if(NOT CMAKE_CUDA_COMPILER)
    set(problem "there is no CUDA compiler: put nvcc on the PATH or name it by CMAKE_CUDA_COMPILER")
else()
    find_package(CUDAToolkit QUIET)
    if(NOT TARGET CUDA::cublasLt OR CUDAToolkit_VERSION VERSION_LESS 13)
        set(problem "CUDA 13 with cuBLASLt is needed, found ${CUDAToolkit_VERSION}")
    endif()
endif()
if(NOT problem)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
    endif()
    enable_language(CUDA)
    add_library(psae_cuda INTERFACE)
    add_library(psae::cuda ALIAS psae_cuda)
    set_target_properties(psae_cuda PROPERTIES EXPORT_NAME cuda)
    target_link_libraries(psae_cuda INTERFACE psae::psae CUDA::cudart CUDA::cublasLt)
    target_compile_options(psae_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>
                                               $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${OpenMP_CXX_FLAGS}>)
elseif(PSAE_CUDA STREQUAL "AUTO")
    message(STATUS "Without the CUDA backend: ${problem}")
else()
    message(FATAL_ERROR "PSAE_CUDA is ${PSAE_CUDA}: ${problem}")
endif()
