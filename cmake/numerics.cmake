# The floating-point flags of the numerics law (N3, docs/numerics.md), for both compilers. Nothing
# else in the build may add one.
set(FUSEDSTEP_CXX_NUMERICS
    -O3 -ffp-contract=off -fno-fast-math -fno-math-errno -fno-trapping-math)
set(FUSEDSTEP_CUDA_NUMERICS
    --fmad=false -prec-div=true -prec-sqrt=true -ftz=false)
