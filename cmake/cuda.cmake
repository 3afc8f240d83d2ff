# The CUDA kernels: joins kernels/*.cu to the module where nvcc works.
if(FUSEDSTEP_CUDA STREQUAL OFF OR FUSEDSTEP_EMULATE_CUDA)
  return()
endif()

# What was found to be missing: fatal when CUDA was asked for, else a CPU build that says why.
function(cuda_is_absent level reason)
  if(FUSEDSTEP_CUDA STREQUAL ON)
    message(FATAL_ERROR "FUSEDSTEP_CUDA=ON, but ${reason}. Install a CUDA toolkit (11.8 or newer), "
                        "name its nvcc in CUDACXX, or build without it: FUSEDSTEP_CUDA=OFF.")
  endif()
  message(${level} "fusedstep: building without CUDA kernels: ${reason}. "
                   "The CPU and Triton backends are unaffected.")
endfunction()

if(NOT CMAKE_CUDA_COMPILER AND DEFINED ENV{CUDACXX})
  set(CMAKE_CUDA_COMPILER $ENV{CUDACXX})
endif()
find_program(CMAKE_CUDA_COMPILER nvcc
             PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NOT CMAKE_CUDA_COMPILER)
  cuda_is_absent(STATUS "no nvcc was found (PATH, CUDACXX, CUDA_HOME, /usr/local/cuda)")
  return()
endif()

# Machine code for the GPUs of this machine that nvcc knows, else for each generation; and PTX of the
# oldest of these, which later GPUs translate. The kernels need a compute capability of 7.0.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
string(REGEX MATCHALL "[0-9]+" known "${known}")
list(FILTER known INCLUDE REGEX "^(7|8|9|1[0-9])[0-9]$")
string(REPLACE ";" "|" served "${known}")
set(architectures ${FUSEDSTEP_CUDA_ARCHS})
foreach(architecture IN LISTS architectures)
  if(known AND NOT architecture MATCHES "^(native|(${served})[af]?(-real|-virtual)?)$")
    message(FATAL_ERROR "FUSEDSTEP_CUDA_ARCHS has ${architecture}, which ${CMAKE_CUDA_COMPILER} or "
                        "these kernels do not serve; choose among ${known}, such as 80;90.")
  endif()
endforeach()
if(NOT architectures)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE here ERROR_QUIET)
  string(REPLACE "." "" here "${here}")
  string(REGEX MATCHALL "[0-9]+" architectures "${here}")
  list(FILTER architectures INCLUDE REGEX "^(${served})$")
  if(NOT architectures)
    set(architectures 70 75 80 90 100)
    list(FILTER architectures INCLUDE REGEX "^(${served})$")
  endif()
  list(REMOVE_DUPLICATES architectures)
  list(SORT architectures COMPARE NATURAL)
  list(POP_FRONT architectures oldest)
  list(TRANSFORM architectures APPEND -real)
  list(PREPEND architectures ${oldest})
endif()

# enable_language() stops the build where nvcc is broken or refuses the host compiler: try first.
set(probe ${CMAKE_BINARY_DIR}/probe_nvcc)
file(WRITE ${probe}.cu "#include <cuda_runtime.h>
__global__ void kernel(int) {}
int main() {
  cudaLaunchConfig_t config = {};
  return cudaLaunchKernelEx(&config, kernel, 0) != cudaSuccess;
}
")
if(CMAKE_CUDA_HOST_COMPILER)
  set(host_compiler -ccbin ${CMAKE_CUDA_HOST_COMPILER})
elseif(DEFINED ENV{CUDAHOSTCXX})
  set(host_compiler -ccbin $ENV{CUDAHOSTCXX})
endif()
execute_process(
    COMMAND ${CMAKE_CUDA_COMPILER} ${host_compiler} -std=c++17 -cudart=static ${probe}.cu -o ${probe}
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT status EQUAL 0)
  string(STRIP "${output}" output)
  cuda_is_absent(WARNING "${CMAKE_CUDA_COMPILER} does not compile a small program (${status}: ${output})")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${architectures})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-DNDEBUG")
enable_language(CUDA)
message(STATUS "fusedstep: CUDA kernels for ${architectures}")

# nvcc's host compiler obeys the numerics law too.
string(REPLACE ";" "," host_numerics "${FUSEDSTEP_CXX_NUMERICS}")
add_library(cuda_kernels OBJECT ${cuda_rules})
target_link_libraries(cuda_kernels PRIVATE options)
target_compile_definitions(cuda_kernels PRIVATE FUSEDSTEP_LEVEL=cuda)
target_compile_options(cuda_kernels PRIVATE -Xcompiler=${host_numerics},-Wall --threads=0)

# The CUDA runtime is linked statically and kept to ourselves: the module is imported on machines
# without a driver, and beside a torch that brings another runtime.
set_target_properties(cuda_kernels ${FUSEDSTEP_MODULE_NAME} PROPERTIES
                      CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
target_link_options(${FUSEDSTEP_MODULE_NAME} PRIVATE
                    $<$<PLATFORM_ID:Linux>:-Wl,--exclude-libs,ALL>)
target_sources(${FUSEDSTEP_MODULE_NAME} PRIVATE
               $<TARGET_OBJECTS:cuda_kernels>)
target_compile_definitions(${FUSEDSTEP_MODULE_NAME} PRIVATE FUSEDSTEP_WITH_CUDA)
