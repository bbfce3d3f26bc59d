"""What the kind of a Python exception says about a restart, where no words of it name a cause.

Another attempt reads the same recipe, the same files and the same rows in the same order. An exception by which a
program refuses them comes again; one that tells of machines, networks and other processes need not. Where a program
fails by a slip of its own (a name, an index), it comes again if nothing has been trained yet; later it may not.
A restart costs hours in a queue, no restart costs one `mmlaunch resume`: in doubt, an exception is the program's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PARTS = re.compile(r"(?:\w+\.)*(\w+)(?:\((\w+)\))?(?:\s*:\s*(.*))?$", re.DOTALL)
_PASSING_KIND = re.compile(
    r"Connect|Time(?:d)?[Oo]ut|Network|Unavailable|Rpc|Actor|Worker|Node|C(?:uda|UDA)|N(?:ccl|CCL)|Accelerator|^Dist|"
    r"Socket|Peer|Remote|Retry|Server|Service|Died|Dead|Lost|Down$|Rendezvous|Child|BrokenP|ProcessL|Signal|Interrupt|"
    r"Cancel|Blocking|SSL|Protocol|^(?:Empty|Full|EOFError|SystemExit|Again|SystemError|Shutdown\w*)$|Proxy|HTTP|Http|"
    r"RateLimit|Throttl|TooMany|Internal(?:Server)?Error|Gateway|Overload|Lock|NVML|Machine"
)
"""Parts of the names of exceptions that tell of something that may pass."""
_PASSING = re.compile(
    r"(?i:tim(?:ed?|ing)[ -]?out\b(?! must| should)|connection (?:was )?(?:refused|reset|closed|aborted|lost|error)|"
    r"unreachable|unavailable|temporarily|temporary failure|again later|max retries|retries exhausted|broken pipe|"
    r"on closed file|consistency check failed|rate limit|request rate|too many requests|not respond|\bkilled\b|"
    r"\bdied\b|reset by|(?:can.?t|cannot|could not|unable to|failed to) (?:connect|reach|contact|resolve)\b|slow ?down|"
    r"no locks|lock file|\bsig(?:nal|term|usr\d|int)\b|terminated|told to (?:stop|leave|end)|"
    r"lost (?:connection|contact|the connection)|no answer|handshake|another rank|"
    r"preempted|interrupted|resource busy|semaphore|child process|is locked|incomplete read)"
)
"""What messages of such exceptions say."""
_OF_A_MACHINE = re.compile(
    r"CUDA (?:error|driver|failure)|cuda\w* ?error|HIP error|NCCL|nccl|CUBLAS|CUDNN|cuDNN error|CUFFT|CUSOLVER|\bECC\b|"
    r"\bXid\b|NVLink|[Nn]o (?:CUDA )?GPUs?\b|NVIDIA driver|[Hh]ardware|\bGPU \d|NVML|NVSHMEM|Triton Error|MIOpen|ROCm|"
    r"\bUCX|\bMPI|[Ss]ocket|RDMA|\bTCP|\b[Rr]anks? \d+ (?:failed|exited|is|are|has)|[Ww]orkers?\b|[Ii]nternal error|"
    r"INTERNAL ASSERT|initialization failed"
)
_REFUSAL = re.compile(
    r"(?i:\bonly (?:supports?|works|available)\b|not (?:yet )?(?:supported|implemented)|unsupported|unknown|"
    r"does(?:n't| not) (?:support|exist)|(?:must|should) (?:be|have|contain|match|not)\b|do(?:es)? not (?:fit|match)|"
    r"(?:expected|expects|requires?|needs?) .*\b(?:but|got|at least|to be|or newer)\b|"
    r"(?:is|are) not (?:a|an|in|of|valid|allowed|one)\b|please (?:set|use|specify|provide|check)|out of range|"
    r"not (?:found|defined)|no such|"
    r"\bno (?:[\w-]+ ){0,3}(?:left|found|remain\w*|given|match\w*)\b|\bmissing\b|invalid|mismatch|"
    r"incompatible)"
)
"""How a program refuses what it is given, in its last words."""
_LAST_WORDS = re.compile(r"\b(?:ERROR|FATAL|CRITICAL)\b|^\W*(?:[Ff]atal|[Ee]rror|[Uu]sage)\b|: (?:fatal )?error:")
"""How a program begins the line with which it gives up."""
_OF_AUTOGRAD = re.compile(r"require(?:s)? grad\b|same device|in-?place operation")
"""Slips that torch itself names."""
_OF_DATA = re.compile(
    r"DataLoader worker process|, in (?:__getitem__|__getitems__|\w*collat\w*|_worker_loop|_next_data|"
    r"_process_data)$|/(?:PIL|datasets|webdataset|pyarrow|decord|torchvision/io)/",
    re.MULTILINE,
)
_SLIPS = ("NameError", "UnboundLocalError", "IndexError", "ZeroDivisionError", "RecursionError", "StopIteration")
_GENERIC = ("RuntimeError", "Exception", "BaseException")
_LASTING_NUMBERS = {1, 2, 7, 8, 13, 17, 18, 20, 21, 22, 24, 27, 36, 38, 39, 40, 95}
"""Those errno(3) of an OSError that speak of paths, permissions and arguments, not of a device or a server."""


@dataclass(frozen=True)
class Raised:
    """An exception as a traceback shows it, with those that it came from."""

    texts: Sequence[str]
    """`Kind: message` of the exception, then of those before it."""
    traceback: str = ""
    trained: bool | None = None
    """Whether the attempt had done a step; None if nobody knows."""


def comes_again(raised: Raised) -> bool:
    """Whether another attempt would end with the same exception."""
    if any(_may_pass(text) for text in raised.texts):
        return False
    return any(_is_of_program(text, raised) for text in raised.texts)


def is_refusal(line: str) -> bool:
    """Whether the last words of a program that raised nothing refuse what it was given, and tell of no machine."""
    says = _LAST_WORDS.search(line) or _REFUSAL.search(line)
    return says is not None and not (_PASSING.search(line) or _OF_A_MACHINE.search(line))


def _may_pass(text: str) -> bool:
    kind, message = _parts(text)
    if _PASSING_KIND.search(kind) or _PASSING.search(message):
        return not re.search(r"\b4(?!08|25|29)\d\d\b", message) or "HTTP" not in kind.upper()
    return False


def _is_of_program(text: str, raised: Raised) -> bool:
    kind, message = _parts(text)
    if kind in (*_GENERIC, "AssertionError") and _OF_A_MACHINE.search(message):
        return False
    if _OF_DATA.search(raised.traceback) or _OF_DATA.search(text):
        return True
    if kind in _GENERIC:
        at_start = raised.trained is False if _OF_AUTOGRAD.search(message) else not raised.trained
        return at_start and not (message == "" and raised.trained is None)
    if kind in ("OSError", "EnvironmentError", "IOError", "FileExistsError"):
        number = re.match(r"\[Errno (\d+)\]", message)
        return int(number[1]) in _LASTING_NUMBERS if number else not raised.trained
    if _is_slip(kind, message):
        return raised.trained is False
    return not raised.trained or kind not in ("TypeError", "AttributeError", "CalledProcessError")


def _is_slip(kind: str, message: str) -> bool:
    """Whether it says nothing of what the program was given: only a name, an index or a None that it did not expect."""
    if kind in ("KeyError", "AssertionError"):
        return " " not in message
    if kind == "AttributeError":
        return "'NoneType'" in message
    if kind == "IndexError":  # torch names the ids and classes that a model does not have
        return "out of range in self" not in message and not message.startswith("Target")
    return kind in _SLIPS


def _parts(text: str) -> tuple[str, str]:
    """The kind of an exception, and its message; of one that wraps another, that one's kind."""
    match = _PARTS.match(text.strip())
    return (match[2] or match[1], (match[3] or "").strip()) if match else (text, "")
