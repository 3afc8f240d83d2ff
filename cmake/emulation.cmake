# The CUDA kernels' own source compiled as C++ (tests/emulation/): as the module's CUDA kernels
# (FUSEDSTEP_EMULATE_CUDA, for the Python tests), and in a test without Python.
if(NOT FUSEDSTEP_EMULATE_CUDA AND NOT BUILD_TESTING)
  return()
endif()

find_package(Threads REQUIRED)
foreach(rule IN LISTS cuda_rules)
  get_filename_component(name ${rule} NAME_WE)
  set(source ${CMAKE_BINARY_DIR}/emulated/${name}.cpp)
  file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${name}.cu\"\n")
  list(APPEND sources ${source})
endforeach()
add_library(emulated_kernels OBJECT ${sources})
target_include_directories(emulated_kernels PRIVATE tests/emulation kernels)
target_link_libraries(emulated_kernels PRIVATE options Threads::Threads)
target_compile_definitions(emulated_kernels PRIVATE FUSEDSTEP_LEVEL=cuda)
target_compile_options(emulated_kernels PRIVATE -Wno-unknown-pragmas)
set_target_properties(emulated_kernels PROPERTIES CXX_STANDARD 20)

if(FUSEDSTEP_EMULATE_CUDA)
  target_sources(${FUSEDSTEP_MODULE_NAME} PRIVATE $<TARGET_OBJECTS:emulated_kernels>)
  target_link_libraries(${FUSEDSTEP_MODULE_NAME} PRIVATE Threads::Threads)
  target_compile_definitions(${FUSEDSTEP_MODULE_NAME} PRIVATE FUSEDSTEP_WITH_CUDA)
endif()

if(BUILD_TESTING)
  add_executable(race_test tests/emulation/race_test.cpp csrc/core/registry.cpp
                 $<TARGET_OBJECTS:cpu_generic> $<TARGET_OBJECTS:emulated_kernels>)
  target_link_libraries(race_test PRIVATE options Threads::Threads)
  set_target_properties(race_test PROPERTIES CXX_STANDARD 20)
  add_test(NAME emulated_cuda_matches_cpu COMMAND race_test)
endif()
