# Compiles a file that includes nothing but the header, for each header of FOLDER (syntax only), and names all that fail.
# EMULATION: an option that lets something stand in for CUDA, or nothing.
file(GLOB headers RELATIVE ${INCLUDE} ${INCLUDE}/psae/${FOLDER}/*.hpp)
if(NOT headers)
    message(FATAL_ERROR "no header in psae/${FOLDER}")
endif()
set(failures "")
foreach(header IN LISTS headers)
    string(MAKE_C_IDENTIFIER ${header} name)
    file(WRITE ${WORK}/${name}.cpp "#include <${header}>\n")
    execute_process(COMMAND ${COMPILER} -std=c++20 -fsyntax-only -fopenmp -Wall -Wextra -Werror ${EMULATION} -I${INCLUDE} -idirafter ${INCLUDE_MORE}
                            ${WORK}/${name}.cpp RESULT_VARIABLE status ERROR_VARIABLE text)
    if(NOT status EQUAL 0)
        string(APPEND failures "<${header}> does not compile alone:\n${text}\n")
    endif()
endforeach()
if(failures)
    message(FATAL_ERROR "${failures}")
endif()
