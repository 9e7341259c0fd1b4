"""Makes the files beside it with torch 2.11, as the tests of src/pth read them: python3 make.py"""
import argparse
import collections
import pathlib

import numpy as np
import torch

a = torch.arange(6, dtype=torch.float32).reshape(2, 3)
kinds = ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
weights = collections.OrderedDict(a=a, transposed=a.t(), row=a[1], every_second=a.flatten()[1::2], parameter=torch.nn.Parameter(a + 1))
weights |= {kind: torch.tensor([0, 1, 2]).to(getattr(torch, kind)) for kind in kinds}
weights |= dict(scalar=torch.tensor(3.5), empty=torch.zeros(0, 3), expanded=torch.ones(1).expand(4))
weights._metadata = {"": {"version": 1}}

net = torch.nn.Linear(2, 1)
torch.nn.init.ones_(net.weight)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
net(torch.ones(1, 2)).sum().backward()
optimizer.step()

plan = {"none": None, "ints": [1, -2, 300, 70000, 2**40, -(2**40)], "float": 0.5, "yes": True, "no": False, "tuple": (1, "x"),
        "size": torch.Size([2, 3]), "set": {7}, "text": "Größe", "deep": {"a": [{}, []]},
        "numpy": [np.float64(0.8), np.float32(0.5), np.int64(-3), np.bool_(True)]}
objects = {"huge": 2**80, "device": torch.device("cpu"), "path": pathlib.PurePosixPath("x"), "space": argparse.Namespace(a=1),
           "dtype": torch.float16, "array": np.zeros(2), "bytes": b"\x00\xff", "unsigned": torch.zeros(2, dtype=torch.uint16)}
everything = {"network_weights": weights, "optimizer_state": optimizer.state_dict(), "plan": plan, "objects": objects}

here = pathlib.Path(__file__).parent
torch.save(everything, here / "all.pth")
torch.save(everything, here / "protocol5.pth", pickle_protocol=5)
del objects["unsigned"]  # the old format has no such type
torch.save(everything, here / "legacy.pth", _use_new_zipfile_serialization=False)
