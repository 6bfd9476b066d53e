"""What the kernels cost, shown on a machine without a GPU: `python -m fastuiat_kernels.audit`.

Machine code is compiled ahead of time for each target and disassembled (registers, spills, width of
every global access); bytes are counted by instrumented loads and stores under Triton's interpreter.
"""
