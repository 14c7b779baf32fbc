# The target psae::cuda: psae::psae for sources that nvcc compiles and that include <psae/cuda.hpp>. Where there is no CUDA
# compiler it is not made, which is an error if PSAE_CUDA is ON.
#
# CMake 3.25 takes no CMAKE_CUDA_STANDARD of 20, and `native` for the architectures fails where there is no GPU.
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    add_library(psae_cuda INTERFACE)
    add_library(psae::cuda ALIAS psae_cuda)
    set_target_properties(psae_cuda PROPERTIES EXPORT_NAME cuda)
    target_link_libraries(psae_cuda INTERFACE psae::psae CUDA::cudart CUDA::cublasLt)
    target_compile_options(psae_cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>
                                               $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${OpenMP_CXX_FLAGS}>)
elseif(PSAE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PSAE_CUDA is ON, but there is no CUDA compiler: put nvcc on the PATH or name it by CMAKE_CUDA_COMPILER")
endif()
