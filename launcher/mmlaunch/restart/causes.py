"""The table of the causes for which an attempt ends: what shows each cause, and what follows from it.

To add a cause, add a row. If the evidence shows several causes, the first row wins: what happened to a machine explains
the errors of programs, the error of one rank explains what the others say of it, and a hang explains nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mmlaunch.run.exits import TIMED_OUT, JobExit

Budget = Literal["crash", "node", "hang", "free", "final"]
"""The field of the recipe's `restarts` that pays for a restart; `free` costs nothing while the run advances."""

LOGS_AND_RESUME = "mmlaunch logs {run} --attempt {attempt}    then mmlaunch resume {run}"

# The causes that the policy names itself. It gets to all others by their evidence.
DONE, CANCELLED, SAVED, TIME_LIMIT = "done", "cancelled", "saved", "time limit"
PREEMPTED, HANG, CRASH, NODE, PROGRAM = "preempted", "hang", "crash", "node", "program error"
NEEDS = "needs"


@dataclass(frozen=True)
class Cause:
    """One row: what shows the cause, what it costs, and what the user reads."""

    name: str
    budget: Budget
    why: str = "It failed"
    """The first sentence of `mmlaunch why`."""
    is_fault: bool = True
    """Whether an ending of this cause is a failure, with an event of its own."""
    final: str = ""
    """Why there is no restart, if there never is one."""
    next: str = LOGS_AND_RESUME
    """What to type next; {run}, {attempt}, {stacks} and {double} (twice the nodes) are filled in."""
    of_task: bool = False
    """Whether it ends a task as a whole: {run} is the task then, and not its shard."""
    exit_codes: tuple[int, ...] = ()
    error_types: tuple[str, ...] = ()
    """The types of a rank's error record."""
    scheduler_states: tuple[str, ...] = ()
    """How a job that its scheduler took away was ended; the words are those of sacct(1)."""
    log_pattern: re.Pattern[str] | None = None
    """What a line of a log holds when this is the cause: the words of the kernel, a driver, NCCL or the scheduler."""
    error_pattern: re.Pattern[str] | None = None
    """The same for lines that state an error: an exception, or the last words of a program. Elsewhere these words may
    stand in a warning, or in the data."""


TABLE: tuple[Cause, ...] = (
    Cause(
        NEEDS,
        budget="final",
        why="What it needs of another stage is not there",
        final="a stage begins once those that it needs are done",
        next="mmlaunch resume its pipeline, which runs what is missing before it",
    ),
    Cause(
        "out of memory",
        budget="final",
        why="Out of memory",
        final="it would fail again: the step does not fit into memory",
        next="mmlaunch resume {run} -s batch.micro=HALF    or more GPUs: -s resources.nodes={double}",
        error_types=("OutOfMemoryError", "MemoryError", "_ArrayMemoryError"),
        log_pattern=re.compile(
            r"oom[-_ ]?kill|OOM Killed|invoked oom-killer|[Oo]ut of memory: Kill|\bOUT_OF_ME|: Out Of Memory$|"
            r"[Ee]xceeded (?:job |step |virtual )?memory limit|memory allocation of \d+ bytes failed|"
            r"out-of-memory handler|memory limit.{0,40}being killed|"
            r"[Kk]illed .{0,80}due to (?:memory pressure|low memory)|"
            r"NCCL WARN.*[Oo]ut of memory|fork: Cannot allocate memory",
        ),
        error_pattern=re.compile(
            r"(?:CUDA|HIP|XPU|device|GPU|host|system|Host|CPU).{0,40}out of memory|OutOfMemory|[Oo]ut of memory|OOM\b|"
            r"_ALLOC_FAILED|[Mm]emory (?:is )?exhausted|OUT_OF_\w*MEMORY|"
            r"cudaErrorMemoryAllocation|can't allocate memory|[Cc]annot allocate memory|"
            r"not enough memory|[Nn]o (?:available|free) memory|"
            r"(?i:\bmemory\b.{0,80}\b(?:(?:less|smaller|larger|more|greater) than|exceeds?)\b)|"
            r"[Ii]nsufficient \w* ?memory|[Aa]llocation .{0,40}failed|"
            r"^(?!.*(?i:\breset\b|\blost\b|\bECC\b|hardware)).*[Mm]alloc.{0,20}fail|"
            r"bad_alloc|MemoryError|[Uu]nable to allocate .*(?:[KMGT]i?B|bytes|array)|"
            r"[Ff]ailed to allocate .*(?:memory|[KMGT]i?B|bytes)|RESOURCE_EXHAUSTED|mmap.*\[Errno 12\]|\[Errno 12\]"
        ),
    ),
    Cause(
        "storage",
        budget="node",
        why="A file system went away",
        log_pattern=re.compile(
            r"LustreError|Lustre:.*(?:evict|lost)|was evicted by|nfs: server .* not responding|mmfs.*(?:unmount|panic)|"
            r"I/O error, dev|EXT4-fs error|XFS .*(?:shutdown|[Cc]orruption)|blk_update_request: I/O error"
        ),
        error_pattern=re.compile(
            r"^(?!.*(?:[Nn]o space left|quota exceeded)).*(?:"
            r"[Ss]tale file handle|[Ss]tale NFS|[Tt]ransport endpoint|[Ii]nput/output error|[Rr]emote I/O error|"
            r"[Rr]ead-only file system|ESTALE|ESHUTDOWN|ENOTCONN|\bEIO\b|\[Errno (?:5|30|107|108|116|121|512)\]|"
            r"\[Errno 110\] Connection timed out: '|No such device or address: '/|Host is down: ')"
        ),
    ),
    Cause(
        "disk full",
        budget="final",
        why="The disk is full",
        final="it would fail again: make room, then resume it",
        next="make room, then mmlaunch resume {run}",
        error_types=("DiskFull",),
        log_pattern=re.compile(r"[Nn]o space left on device|[Dd]isk quota exceeded"),
        error_pattern=re.compile(
            r"ENOSPC|EDQUOT|\[Errno (?:28|122)\]|[Qq]uota exceeded|[Nn]ot enough (?:free )?(?:disk|space)|disk is full|"
            r"[Oo]ut of (?:disk|shared memory)|shared memory object|insufficient shared memory|"
            r"PytorchStreamWriter failed|enforce fail at inline_container|file write failed|"
            r"[Nn]o usable temporary directory|Bus error.*shared memory"
        ),
    ),
    Cause(
        "node",
        budget="node",
        why="A node is unfit",
        exit_codes=(JobExit.UNFIT_NODE,),
        error_types=("UnfitNode",),
        scheduler_states=("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED"),
        log_pattern=re.compile(
            r"\bXid\b.{0,40}: (?!13\b|31\b|43\b|45\b|68\b|69\b)\d+|[Ff]allen off the bus|[Uu]ncorrectable ECC|"
            r"[Dd]ouble.bit ECC|NVLink (?:error|fatal)|Node failure on|DUE TO NODE FAILURE|GPU is lost|"
            r"CUDA error: (?:unspecified launch failure|unknown error|uncorrectable|hardware|system not yet init)|"
            r"Machine check|mce: \[Hardware Error\]|nvidia-smi has failed|row remapping|"
            r"GPU.{0,20}requires? (?:a )?reset|"
            r"infiniband.*(?:link down|port error)|DUE TO (?:SYSTEM|NODE|HARDWARE)|nodes? not responding|"
            r"lost contact with node|slurmd .*(?:not respond|down)"
        ),
        error_pattern=re.compile(
            r"No CUDA GPUs are available|(?i:\bno GPUs? (?:found|detected|visible))|"
            r"'/dev/(?:nvidia|infiniband)|CUDA-capable device.*(?:busy|unavailable)|no CUDA-capable device|"
            r"cudaErrorDevicesUnavailable|cudaErrorECCUncorrectable|ECC error|Unable to determine the device handle|"
            r"CUDA (?:driver initialization failed|initialization: )|cuInit|nvml.*(?:Unknown Error|GPU is lost)|"
            r"CUDA error: (?:device.*unavailable|an illegal instruction|misaligned|initialization error)|NVML_ERROR|"
            r"cudaErrorSystem|system not yet initialized|"
            r"HARDWARE_EXCEPTION|HSA_STATUS_ERROR|hipErrorNoDevice|Driver/library version mismatch"
        ),
    ),
    Cause(
        "plugin",
        budget="final",
        why="Code of your own, which the recipe names, failed",
        final="it would fail again: the run keeps its copy of this code",
        next="mend a copy of that file, then mmlaunch resume {run} -s FIELD=THE_COPY.py:NAME; or mmlaunch submit",
        error_types=("PluginFailed",),
    ),
    Cause(
        "import",
        budget="final",
        why="The code could not be imported",
        final="it would fail again: the code cannot be imported",
        next="mmlaunch logs {run} --attempt {attempt}, mend the installation, then mmlaunch resume {run}",
        error_types=("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError"),
        log_pattern=re.compile(
            r"error while loading shared libraries|cannot open shared object file|symbol lookup error|"
            r"version `[\w.]+' not found|: undefined symbol: |execve\(\): .*(?:No such file|[Pp]ermission|[Ff]ormat)|"
            r"bad interpreter|^(?:\S*bash|\S*sh|\S+): (?:line \d+: )?\S+: (?:command )?not found$|"
            r"\b(?:bash|slurm_script|sh): (?:line \d+: )?\S+: (?:No such file or directory|Permission denied)$|"
            r"module\(s\) are unknown|Unable to locate a modulefile|"
            r"FATAL: .*(?:image|container|\.sif)|python\S*: No module named|can't open file '"
        ),
        error_pattern=re.compile(
            r"(?:Import|ModuleNotFound|Indentation|Tab)Error|SyntaxError(?!: (?:broken|not a) \w+ file)|"
            r"[Cc]annot import name|"
            r"[Ff]ailed to import (?!docker|container|squashfs)|could not be imported|"
            r"does not match the version|(?:unable|failed) to compile|"
            r"No module named|"
            r"partially initialized module|module '\S+' has no attribute|"
            r"(?:driver (?:version|on your system) is).*(?:insufficient|too old)|no kernel image is available|"
            r"PTX was compiled|unsupported toolchain|"
            r"[Tt]orch not compiled with CUDA|built (?:with|without) CUDA|requires (?:\S+)[<>=!]=?\s?\d|"
            r"[Ff]lash.?[Aa]ttn\S* .*not (?:installed|available)|is not installed|[Pp]lease install|pip install|"
            r"compiled (?:with|using|against).{0,60}(?:NumPy|version)|[Bb]inary incompatibility|"
            r"numpy\.dtype size changed|"
            r"ABI|Error building extension|CUDA_HOME|[Nn]inja is required|DistributionNotFound|VersionConflict|"
            r"PackageNotFoundError"
        ),
    ),
    Cause(
        "request",
        budget="final",
        why="The scheduler cannot give what the job asks for",
        final="it would fail again: change resources, or the cluster profile",
        next="mmlaunch resume {run} -s resources.nodes=FEWER, or mend the cluster profile",
        log_pattern=re.compile(
            r"[Ii]nvalid generic resource|Invalid gres|[Ii]nvalid (?:account|qos|partition|constraint|feature|wckey|"
            r"numeric value)|[Mm]ore processors requested than permitted|"
            r"Requested node configuration is not available|Memory required by task is not available|"
            r"(?:fatal|error): \w+(?:, \w+)*.*mutually exclusive|[Uu]nable to create step.*(?:[Ii]nvalid|"
            r"not avail|gres|"
            r"[Pp]ermission|node count)|Requested partition configuration|[Jj]ob violates accounting|"
            r"srun: fatal: (?!.*(?:contact|connect|timed out|slurmctld))|"
            r"srun: (?:error: )?(?:unrecognized option|invalid option|Invalid)|batch: error: .*[Ii]nvalid|"
            r"Unable to allocate resources: (?!.*(?:contact|timed out|connect))|requested resources .*(?:exceed|"
            r"not available)|[Ii]nvalid --\w+|srun: error: .*(?:[Oo]nly allocated|asked for \d+$|used without|"
            r"is not allowed)"
        ),
    ),
    Cause(
        "not finite",
        budget="final",
        why="A loss or a weight is not finite",
        final="it would fail again: lower optim.lr, or look at the data of that step",
        next="mmlaunch resume {run} -s optim.lr=SMALLER    or mmlaunch logs {run} --attempt {attempt}",
        error_types=("NotFinite",),
        error_pattern=re.compile(
            r"NotFinite|(?i:(?<!no )\bnans?\b|"
            r"(?:loss|grad\w*|weights?|values?|logits|param\w*|output|tensor|input\w*|head|states?)\b.{0,60}"
            r"\b(?:inf|infinite|non-?finite|not finite)\b|contains? inf|"
            r"(?:produced|returned|bec(?:a|o)mes?|gave|gives|got|went to|turned|detected|found|encountered|is|was|are) "
            r"(?:\w+ )?-?(?:inf|infinity)\b|minimum loss scale|loss scale.*(?:minimum|too small)|"
            r"gradient overflow.*(?:stop|abort)|loss (?:exploded|diverged)|non-?finite (?:loss|grad|weight|value))|"
            r"FloatingPointError"
        ),
    ),
    Cause(
        "checkpoint",
        budget="final",
        why="A checkpoint does not fit, or is damaged",
        final="it would fail again: the weights are not those of this model, or cannot be read",
        next="name another checkpoint or model, then mmlaunch submit",
        error_types=("SafetensorError", "UnpicklingError"),
        log_pattern=re.compile(r'File "\S*_weights_only_unpickler\.py"'),  # an empty file is a bare EOFError there
        error_pattern=re.compile(
            r"size mismatch for|loading state_dict|(?:[Mm]issing|[Uu]nexpected) keys?(?:\(s\)| in| when)|state.dict|"
            r"SafetensorError|"
            r"deserializing header|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer|UnpicklingError|"
            r"[Ww]eights only load failed|PytorchStreamReader|invalid header or archive|Ran out of input|"
            r"[Pp]ickle data was truncated|[Ii]nvalid magic number|file in archive is not in a subdirectory|"
            r"(?i:checkpoint.{0,80}(?:not (?:found|fit|match|exist|valid|compat)|mismatch|corrupt|incompat|different|"
            r"damaged|missing|no valid|world size|shape|cannot be)|"
            r"(?:mismatch|corrupt\w*|incompatible|invalid|cannot load|failed to load|could not load|"
            r"unable to (?:load|find))"
            r".{0,60}(?:checkpoint|state.?dict|weights))|(?i:(?:can.t|cannot|could not|unable to|failed to|"
            r"no) (?:(?:find|load|read|restore|open|resume)\b)?.{0,40}checkpoint)|"
            r"(?i:^(?!.*(?:saving|to save|writing|to write|upload)).*\bcheckpoints?\b)|DP world size|"
            r"[Nn]o file named .*(?:model|weight|safetensors|\.bin)|"
            r"parameter group that doesn't match|"
            r"Unable to find latest file"
        ),
    ),
    Cause(
        "engine",
        budget="crash",
        why="A server of the external engine failed",
        error_types=("EngineFailed", "ServerLost"),
        error_pattern=re.compile(r"external\.client\.(?:EngineFailed|ServerLost)\b"),
    ),
    Cause(
        "network",
        budget="crash",
        why="The network failed",
        error_types=("HubUnreachable",),
        log_pattern=re.compile(r"curl: \((?:5|6|7|28|35|52|55|56)\)"),  # of enroot, which fetches an image
        error_pattern=re.compile(
            r"^(?!.*(?:CERTIFICATE_VERIFY|certificate verify))(?:.*)(?:"  # no retry makes a certificate valid
            r"[Cc]ouldn't connect to 'https?://|hub does not answer|MaxRetryError|NewConnectionError|ConnectTimeout|"
            r"ReadTimeout|ConnectionError: .*(?:https?|HTTP)|check your (?:internet )?connection|"
            r"Temporary failure in name resolution|(?:50[0234]|429) (?:Server|Client) Error|Name or service not known|"
            r"(?:ProxyError|SSLError|ChunkedEncodingError|IncompleteRead|RemoteDisconnected|ProtocolError))"
        ),
    ),
    Cause(
        "credentials",
        budget="final",
        why="The hub or another service refused the job",
        final="it would fail again: the name is wrong, or the credentials are",
        next="mend the name or the token (env: in the recipe), then mmlaunch resume {run}",
        log_pattern=re.compile(r"wandb: ERROR .*(?:api.?key|[Pp]ermission|401|403|not logged in|Unauthorized)"),
        error_pattern=re.compile(
            r"(?:GatedRepo|RepositoryNotFound|RevisionNotFound|EntryNotFound|DisabledRepo|LocalTokenNotFound|"
            r"OfflineModeIsEnabled|HFValidation|Authentication|NoCredentials|Unauthorized|Forbidden|AccessDenied|"
            r"PermissionDenied|LocalEntryNotFound)\w*|\b40[134]\b.{0,3} ?(?:Client Error|Unauthorized|Forbidden|"
            r"Not Found)|gated repo|"
            r"[Aa]ccess to (?:model|dataset|repo\w*|this)|not a valid model identifier|[Ii]nvalid (?:user(?:name)?|"
            r"token|api.?key|"
            r"credential)|api[_ ]key|not logged in|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|"
            r"must be authenticated|(?i:do(?:es)?n.t have (?:access|permission)|token .{0,20}(?:invalid|expired|"
            r"missing))|[Ll]ogin required|[Cc]redentials|outgoing traffic has been disabled|"
            r"Permission denied \(publickey|HF_TOKEN|HF_HUB_OFFLINE|does not exist on (?:the )?[Hh]ub|"
            r"huggingface-cli login|CERTIFICATE_VERIFY_FAILED|certificate verify failed"
        ),
    ),
    Cause(
        "input changed",
        budget="final",
        why="The input is no longer what it was at submission",
        final="it would fail again: an input file has changed",
        next="put the file back, then mmlaunch resume {run}; or mmlaunch submit a new task",
        of_task=True,
        error_types=("InputChanged",),
    ),
    Cause(
        "failed rows",
        budget="final",
        why="Most rows have failed",
        final="it would fail again: the same rows fail",
        next="mend the data or the recipe, then mmlaunch submit; or let more rows fail: "
        "mmlaunch resume {run} -s objective.max_failed=SHARE",
        of_task=True,
        error_types=("TooManyFailed",),
    ),
    Cause(
        "bad input",
        budget="final",
        why="The recipe or the data are wrong",
        final="it would fail again: the recipe or the data are wrong",
        next="mend the recipe or the data, then mmlaunch submit; or mmlaunch resume {run} -s PATH=VALUE",
        exit_codes=(JobExit.BAD_INPUT,),
        error_types=(
            "BadInput",
            "FileNotFoundError",
            "NotADirectoryError",
            "IsADirectoryError",
            "PermissionError",
            "UnicodeDecodeError",
            "JSONDecodeError",
            "ValidationError",
            "UnidentifiedImageError",
        ),
        log_pattern=re.compile(
            r"error: (?:unrecognized arguments|the following arguments are required|argument \S+|ambiguous option)|"
            r"^(?:Error|error): (?:[Nn]o such option|[Nn]o such command|Missing (?:option|argument)|Invalid value)|"
            r"[Ii]nvalid value for '?-|[Mm]issing (?:option|argument|parameter) '|[Nn]o such (?:option|command)|"
            r"^\s*[Uu]nrecogni[sz]ed (?:options?|arguments?)\b|Could not override|"
            r"Key '\S+' (?:is )?not in|In '\S+': |hydra.*[Ee]rror"
        ),
        error_pattern=re.compile(
            r"(?:FileNotFound|NotADirectory|IsADirectory|Permission|UnicodeDecode|JSONDecode|Validation|"
            r"UnidentifiedImage|"
            r"Config\w*|MissingMandatoryValue|InterpolationKey|Hydra|Omega\w*|ArrowInvalid|Parser|Scanner|"
            r"DataFilesNotFound|"
            r"DatasetNotFound|DatasetGeneration|BadZipFile|BadGzipFile|DecompressionBomb|EmptyData|ArgumentType|"
            r"Argument|"
            r"UnsupportedOperation|TOMLDecode|DeepSpeedConfig)(?:Error|Exception|s?Warning)?\b:?|"
            r"[Nn]o such file|[Pp]ermission denied|cannot identify image|image file is truncated|Truncated File|"
            r"broken PNG|"
            r"unrecognized (?:data stream|image)|[Uu]nexpected keyword argument|got multiple values for|"
            r"missing \d+ required (?:positional|keyword)|(?i:(?:unrecogni[sz]ed|unknown|unsupported|invalid|illegal|"
            r"unexpected) (?!operand)"
            r"(?:\w+ ){0,2}(?:argument|option|key|field|value|config\w*|choice|parameter|recipe|method|model|"
            r"optimi[sz]er|"
            r"scheduler|dtype|format|name|loss|type|setting|precision|flag|keyword|section|task))|"
            r"ValueError: (?i:invalid|unknown|"
            r"unsupported|unrecogni)|(?i:(?:failed to|could not|can ?not|can.t|unable to) (?:open|read|find|locate|"
            r"decode|parse|load|consume|match|cast|identify|create decoder)\b)|"
            r"[Ee]rror (?:decoding|opening|parsing|reading) |"
            r"[Nn]ot an? (?:JPEG|PNG|GIF|WebP|TIFF|image|tar|zip|gzip|parquet|JSON) file|"
            r"(?:round|whole|even) multiple of|(?i:world.?size|parallel \w+).{0,120}(?:!=|not equal|does not)|"
            r"(?i:(?:fewer|less) (?:\w+ )?than (?:\w+ ){0,3}batch)|(?i:batch.?(?:size)?.{0,80}(?:divisible|not equal|"
            r"divide|mismatch|must be|needs? to be|multiple|inconsistent|related param))|[Dd]ivisible by|num_samples=0|"
            r"(?i:(?:dataset|data ?file|data source|file|split|folder|directory|manifest) .{0,80}(?:not found|"
            r"does ?n.?t exist|is empty|"
            r"no (?:rows|samples|examples)|missing|unreadable|corrupt|not readable|does not exist))|"
            r"(?i:(?:no|empty|zero) (?:training )?(?:data|samples?|examples?|rows) (?:found|in|left)|"
            r"missing (?:required )?(?:column|field|"
            r"image|file|key in config|argument|config))|(?:cv2|zlib|struct|csv|binascii|tarfile|lzma|gzip|zipfile|"
            r"soundfile|decord|av)\.\w*[Ee]rror|CastError|column names? (?:don.t|do not|mismatch)|"
            r"not a valid (?:image|json|"
            r"value|choice|config|path|jsonl)|incorrect header check|Error -3 while decompressing|must (?:be one of|"
            r"specify|provide|"
            r"have|set)|(?:at least|only) one of .* (?:must|should)|[Ii]ncompatible (?:options|arguments|config)|"
            r"Vocabulary|chat template|Extra data: line|Expecting (?:value|property)"
        ),
    ),
    Cause(
        CANCELLED,
        budget="final",
        is_fault=False,
        final="cancelled by a user",
        log_pattern=re.compile(
            r"JOB \d+ (?:ON \S+ )?CANCELLED (?:AT|BY|by) (?!.* DUE TO (?!SIGNAL))|CANCELLED (?:by|BY) (?:UID )?\d+|"
            r"sending Ctrl-C to"
        ),
    ),
    Cause(
        "ports",
        budget="crash",
        why="A port was taken",
        error_pattern=re.compile(
            r"[Aa]ddress already in use|EADDRINUSE|port .{0,30}(?:in use|taken|already)|errno: 98\b"
        ),
    ),
    Cause(
        "launch",
        budget="node",
        why="The ranks could not be started",
        log_pattern=re.compile(
            r"[Uu]nable to create step|launch failed|launch_tasks timeout|[Tt]ask launch for .* failed|"
            r"[Uu]nable to confirm allocation|[Jj]ob credential expired|Zero Bytes were transmitted|"
            r"Unable to contact slurm controller|Communication connection failure|Socket timed out on send/recv|"
            r"prolog.{0,20}(?:failed|error)|DUE TO (?:LAUNCH|PROLOG)|Error configuring interconnect|"
            r"Timed out waiting for job step|PMIx?.*(?:failed|timeout)|Slurmd could not|could not set up the container|"
            r"pyxis: .*(?:failed|couldn't)|enroot.*(?:failed|error)"
        ),
    ),
    Cause(
        PROGRAM,
        budget="final",
        why="The program failed by itself",
        final="it would fail again: the program refused the recipe or the data, or has a mistake of its own",
    ),
    Cause(
        TIME_LIMIT,
        budget="free",
        why="The time limit came before it could save",
        is_fault=False,
        next="mmlaunch resume {run} -s resources.time=LONGER, or a longer lead in the cluster profile",
        exit_codes=(TIMED_OUT,),
        log_pattern=re.compile(r"DUE TO TIME LIMIT"),
    ),
    Cause(
        PREEMPTED,
        budget="free",
        why="It was taken off its nodes again and again",
        is_fault=False,
        log_pattern=re.compile(r"DUE TO (?:PREEMPTION|JOB REQUEUE)"),
    ),
    Cause(
        "stop",
        budget="final",
        why="The job asked not to be restarted",
        final="the job asked not to be restarted",
        exit_codes=(JobExit.STOP,),
    ),
    Cause(CRASH, budget="crash", why="A rank failed"),
    Cause(
        HANG,
        budget="hang",
        why="No rank made progress any more",
        next="the stacks are in {stacks}; then mmlaunch resume {run}",
        exit_codes=(JobExit.HANG,),
        error_types=("Hang",),
        log_pattern=re.compile(
            r"collective operation timeout|ran for \d+ ?(?:ms|milliseconds) before timing out|Timeout at NCCL work|"
            r"NCCL operations have failed or timed out|watchdog (?:thread )?(?:got stuck|timed out)|"
            r"failed to pass monitoredBarrier|"
            r"heartbeat monitor.{0,60}(?:timed out|stuck)|Timed out waiting \d+ ?ms for (?:recv|send)|"
            r"no progress for \d+ s|"
            r"INFO: task .* blocked for more than",
            re.IGNORECASE,
        ),
        error_pattern=re.compile(r"(?<!remote worker )\b[Hh]ang(?:s|ed|ing)?\b|[Dd]eadlock|NCCL.{0,80}[Tt]imed out"),
    ),
    Cause(
        SAVED,
        budget="free",
        why="It was told to stop and had saved, but got nowhere any more",
        is_fault=False,
        exit_codes=(JobExit.AGAIN,),
    ),
    Cause(DONE, budget="final", is_fault=False, final="the run is complete", exit_codes=(JobExit.DONE,)),
)


def named(name: str) -> Cause:
    """The row of a cause. A ledger of another version may name one that is not in the table."""
    return next((cause for cause in TABLE if cause.name == name), Cause(name, budget="final"))


def of_exit_code(code: int) -> Cause | None:
    """The cause that an exit code stands for, if it has a meaning of its own."""
    return next((cause for cause in TABLE if code in cause.exit_codes), None)


def of_error_type(name: str) -> Cause | None:
    """The cause that the type of an error record stands for."""
    return next((cause for cause in TABLE if name in cause.error_types), None)


def of_scheduler_state(state: str) -> Cause | None:
    """The cause that a scheduler's word for the end of a job stands for."""
    return next((cause for cause in TABLE if state in cause.scheduler_states), None)


def rank(name: str) -> int:
    """The place of a cause in the table: evidence of the first one decides."""
    return next((index for index, cause in enumerate(TABLE) if cause.name == name), len(TABLE))


def with_patterns() -> list[tuple[str, re.Pattern[str] | None, re.Pattern[str] | None]]:
    """The name, the log pattern and the error pattern of every cause that logs can show, in the order of the table."""
    return [(cause.name, cause.log_pattern, cause.error_pattern) for cause in TABLE
            if cause.log_pattern or cause.error_pattern]  # fmt: skip
