"""llama.cpp's own quantizer, every matrix of one type.

python quantize.py SOURCE.gguf TARGET.gguf FTYPE     # llama.cpp's number of a file type
"""

import ctypes
import sys

import llama_cpp as llama

if __name__ == "__main__":
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.pure = int(sys.argv[3]), True, True
    sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
