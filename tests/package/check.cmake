cmake_minimum_required(VERSION 3.24)

# Builds and runs the project beside this file, with psae taken in the way WAY.
function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    if(NOT status EQUAL 0)
        string(REPLACE ";" " " command "${ARGN}")
        message(FATAL_ERROR "failed: ${command}\n${text}")
    endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
if(WAY MATCHES "find_package|cuda")
    # Installed from a configuration of its own: installing this build would need every program of it.
    set(with_cuda OFF)
    if(WAY STREQUAL "cuda")
        set(with_cuda ON)
        list(APPEND CUDA_OPTIONS -DCMAKE_CUDA_COMPILER=${CUDA_COMPILER}
             "-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}")
    endif()
    run(${CMAKE_COMMAND} -S ${PSAE_SOURCE} -B ${WORK}/psae -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
        -DPSAE_EXAMPLES=OFF -DPSAE_TESTS=OFF -DPSAE_CUDA=${with_cuda} ${CUDA_OPTIONS})
    run(${CMAKE_COMMAND} --install ${WORK}/psae --prefix ${WORK}/prefix)
endif()
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/consumer -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DPSAE_SOURCE=${PSAE_SOURCE} -DWAY=${WAY} ${CUDA_OPTIONS})
run(${CMAKE_COMMAND} --build ${WORK}/consumer)
run(${WORK}/consumer/consumer)
if(NOT WAY STREQUAL "cuda")
    run(${WORK}/consumer/consumer_native)
endif()
