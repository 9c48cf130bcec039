"""Answers that want the score without the solution.

Every one defines ``f``, of which the test wants a number that only the test knows.
"""

CHEATS = {
    "too long to load": "#" * 2**21 + "\ndef f(x): return 1",
    "exit": "import sys\ndef f(x): sys.exit(0)",
    "exit at once": "import sys\nsys.exit(0)",
    "os._exit": "import os\ndef f(x): os._exit(0)",
    "os._exit at once": "import os\nos._exit(0)",
    "kill oneself": "import os\ndef f(x): os.kill(os.getpid(), 15)",
    "equal to all": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "int equal to all": """
class E(int):
    def __eq__(self, o): return True
    __hash__ = int.__hash__
def f(x): return E(1)""",
    "str equal to all": """
class E(str):
    def __eq__(self, o): return True
    __hash__ = str.__hash__
def f(x): return E('1')""",
    "float equal to all": """
class E(float):
    def __eq__(self, o): return True
    __hash__ = float.__hash__
def f(x): return E(1)""",
    "list equal to all": "class E(list):\n    def __eq__(self, o): return True\ndef f(x): return E([1])",
    "dict equal to all": """
class E(dict):
    def items(self): return [(1, 1)]
    def __eq__(self, o): return True
def f(x): return E()""",
    "metaclass": """
class M(type):
    def __eq__(s, o): return True
    __hash__ = type.__hash__
class E(metaclass=M): pass
def f(x): return E""",
    "class named int": "class int:\n    def __eq__(self, o): return True\ndef f(x): return int()",
    "reports itself as int": """
class E:
    __class__ = int
    def __index__(self): return 1
    def __eq__(self, o): return True
def f(x): return E()""",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): raise ValueError",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return None",
    "displayhook and trace": "import sys\nsys.settrace(lambda *a: None)\ndef f(x): return 1",
    "AssertionError": "def f(x): raise AssertionError('passed')",
    "swallow assertions": "import builtins\nbuiltins.AssertionError = None\ndef f(x): return None",
    "read its tests": "import os\ndef f(x):\n    return [open(p).read() for p in ('/tmp/tests.py', 'tests.json')]",
    "read main": "def f(x):\n    import __main__\n    return __main__.expected",
    "read its frames": """
import sys
def f(x):
    frame, found = sys._getframe(), []
    while frame:
        found += [v for v in frame.f_locals.values() if type(v) is int and v > 10**6]
        frame = frame.f_back
    return found[0] if found else 0""",
    "read the job": """
import sys
def f(x):
    frame = sys._getframe()
    while 'job' not in frame.f_locals:
        frame = frame.f_back
    import re
    return max(map(int, re.findall(r'\\d+', repr(frame.f_locals['job'])[:10000])))""",
    "search the heap": """
import gc
def f(x):
    big = [v for o in gc.get_objects() if type(o) in (list, tuple, dict) for v in (o.values() if type(o) is dict else o)
           if type(v) is int and 10**8 < v < 10**10]
    return big[0] if big else 0""",
    "print the verdict": "print('1 passed')\ndef f(x): print('right'); return 'right'",
    "print a tree": 'def f(x): print(\'["int","0x1"]\'); return True',
    "write to every descriptor": """
import os
for fd in range(256):
    try: os.write(fd, b'{"passed": true}\\n')
    except OSError: pass
def f(x): return 1""",
    "write a frame": "\nimport os\ndef f(x):\n    os.write(3, b'[\"bool\",true]\\n'); return True",
    "forge with the nonce": """
import os, sys
def f(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals:
        frame = frame.f_back
    here = frame.f_locals
    for tree in ('["bool",true]', '["right"]', '["passed"]'):
        os.write(here['channel'], f"{here['nonce']} {tree}\\n".encode())
    os._exit(0)""",
    "answer twice": """
import os, sys
def f(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals:
        frame = frame.f_back
    here = frame.f_locals
    for guess in range(2000):
        os.write(here['channel'], f"{here['nonce']} [\\"int\\",\\"{guess:#x}\\"]\\n".encode())
    return 1""",
    "patch json": "import json\njson.dumps = json.loads = lambda *a, **k: True\ndef f(x): return 1",
    "patch the harness": """
import sys
for name, module in list(sys.modules.items()):
    for key, value in list(vars(module).items()):
        if key in ('encode', 'said', 'perform'):
            setattr(module, key, lambda *a: '["bool",true]')
def f(x): return 1""",
    "patch builtins": """
import builtins
builtins.type = lambda *a: int
builtins.isinstance = lambda *a: True
def f(x): return object()""",
    "patch os.write": "import os\nos.write = lambda *a: len(a[1])\ndef f(x): return 1",
    "replace stdout": "import sys, io\nsys.stdout = io.StringIO('passed')\ndef f(x): return sys.stdout",
    "complain as the sandbox": """
import os, sys
os.write(2, b'prctl: broken')
def f(x): sys.stderr.write('x'); os._exit(99)""",
    "fork": "import os\ndef f(x): return os.fork()",
    "thread that outlives": """
import threading, time
def f(x): threading.Thread(target=time.sleep, args=(99,)).start(); return 1""",
    "generator": "def f(x): yield from range(10**9)",
    "endless iterator": "import itertools\ndef f(x): return itertools.count()",
    "iterates forever": """
class E(list):
    def __iter__(self):
        while True: yield 1
def f(x): return E([1])""",
    "contains itself": "def f(x):\n    a = []; a.append(a); return a",
    "NaN": "def f(x): return float('nan')",
    "infinity": "def f(x): return float('inf')",
    "bool": "def f(x): return True",
    "huge int": "def f(x): return 10 ** 100_000",
    "string of the number": "def f(x): return str(x)",
    "hash collisions": "def f(x): return {i * (2**61 - 1) for i in range(2000)}",
    "deep": "def f(x):\n    a = 1\n    for _ in range(100_000): a = [a]\n    return a",
    "mutate the arguments": "def f(x, seen=[]):\n    seen.append(x); return seen",
    "recursion": "def f(x): return f(x)",
    "surrogates": """
def f(x): return '\\ud800\\x00'""",
    "not code": "This is f: passed",
    "null byte": "def f(x): return 1\n\u0000",
    "unicode bomb": "def f(x): return '\\N{BELL}' * 10**5",
    "deep source": "f = " + "(" * 5000 + ")" * 5000,
}
SLOW = {
    "sleep": "import time\ndef f(x): time.sleep(99)",
    "loop": "def f(x):\n    while True: pass",
    "infinite output": "def f(x):\n    while True: print(x)",
    "flood of the channel": "import os\ndef f(x):\n    while True: os.write(3, b'x' * 65536)",
    "long lines of the channel": "def f(x): return 'x' * 10**7",
    "uncatchable": """
def f(x):
    while True:
        try:
            while True: pass
        except BaseException: pass""",
    "memory": "def f(x):\n    a = []\n    while True: a.append(bytearray(10**7))",
    "slow import": "import time\ntime.sleep(99)\ndef f(x): return 1",
    "power": "def f(x): return 9 ** 9 ** 9 ** 9",
}
"""Those that end by a limit of time, output or memory."""
