"""Outputs in the forms that other tools print, with figures of our own."""

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Charge counter: 2810000
  status: 2
  health: 2
  present: true
  level: 64
  scale: 100
  voltage: 4012
 Time when the latest updated value of the voltage was sent via battery changed broadcast: 0
  temperature: 318
  technology: Li-ion
  current now: 812
  charge counter: 2799999

[BattActionChangedLogBuffer]
08-11 18:34:14.721  Sending ACTION_BATTERY_CHANGED: level:12, status:3, voltage:3600, temperature:999
"""
UNPLUGGED = BATTERY.replace("USB powered: true", "USB powered: false").replace("  status: 2", "  status: 3")
THERMAL = """IsStatusOverride: false
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=31.0, mType=3, mName=SKIN, mStatus=0}
\tTemperature{mValue=30.0, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=58.250004, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=61.5, mType=0, mName=CPU7, mStatus=2}
\tTemperature{mValue=NaN, mType=9, mName=TPU, mStatus=0}
\tTemperature{mValue=39.5, mType=3, mName=SKIN, mStatus=1}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=cpu0}
"""
RAILS = """t=200000
CH0(T=200000)[S10M_VDD_TPU], 1000000
CH1(T=200000)[S2M_VDD_CPUCL2], 5000000
CH2(T=200000)[S3M_VDD_CPUCL1], 7000000
"""
BENCHMARK = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [model.tflite]
INFO: Loaded model model.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 31 out of 33 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for subgraph 0.
INFO: The input model file size (MB): 2.5
INFO: Initialized session in 41.75ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=12 first=52000 curr=41000 min=40500 max=52000 avg=42000.5 std=3100 p5=40500 median=41200 p95=52000

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=41000 curr=40900 min=40100 max=43900 avg=41005.2 std=640 p5=40300 median=40950 p95=42800

INFO: Inference timings in us: Init: 41750, First inference: 52000, Warmup (avg): 42000.5, Inference (avg): 41005.2
INFO: Memory footprint delta from the start of the tool (MB): init=10.5 overall=25
INFO: Overall peak memory footprint (MB) via periodic monitoring: 40
"""  # noqa: E501
PROFILE = """INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t ModifyGraphWithDelegate\t    6.000\t    6.000\t100.000%\t100.000%\t  7148.000\t        1\tModifyGraphWithDelegate/0

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                QUANTIZE\t    0.100\t    0.100\t  1.000%\t  1.000%\t     0.000\t        1\t[tfl.quantize]:0
\tConvolution (NHWC, QC8) IGEMM\t    0.400\t    0.450\t 90.000%\t 91.000%\t     0.000\t        2\tDelegate/Convolution (NHWC, QC8) IGEMM:0

============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, QC8) IGEMM\t    0.400\t    0.450\t 90.000%\t 91.000%\t     0.000\t        2\tDelegate/Convolution (NHWC, QC8) IGEMM:0

Number of nodes executed: 2
"""  # noqa: E501
PROFILE_CSV = """============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
TfLiteGpuDelegateV2, 9.1, 9.0, 90%, 90%, 0, 1, [a, b]:0
SOFTMAX, 1.1, 1.0, 10%, 100%, 0, 1, [probabilities]:1

"""
MLPERF = """================================================
MLPerf Results Summary
================================================
SUT name : tflite
Scenario : SingleStream
Mode     : PerformanceOnly
90th percentile latency (ns) : 1900000
Result is : INVALID
  Min duration satisfied : NO
  Min queries satisfied : Yes
 * Processed at least 64 queries (2048).

Min latency (ns)                : 1000000
Max latency (ns)                : 9000000
Mean latency (ns)               : 1500000
50.00 percentile latency (ns)   : 1400000
90.00 percentile latency (ns)   : 1900000
99.90 percentile latency (ns)   : 8000000
"""
CHECKIN = """9,0,i,vers,36,210,BP2A,BP2A
9,0,i,uid,10123,com.example.app
9,0,l,bt,0,1000000,900000,1100000,1000000,1,1,1
9,0,l,pws,4485,120.5,100,130
9,10123,l,pwi,uid,1.25,0,0.5,0.1
9,h,0:RESET:TIME:1700000000000
9,h,292,Bl=46,Bs=d
"""
POWERMETRICS = """*** Sampled system activity (Fri Sep 11 13:41:47 2026 -0700) (1010.50ms elapsed) ***
CPU Power: 900 mW
GPU Power: 30 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 930 mW
Current pressure level: Nominal
"""
XCTEST = (
    "Test Case '-[Tests.Bench testForward]' measured [Clock Monotonic Time, s] average: 0.005, relative standard "
    'deviation: 12.5%, values: [0.004, 0.005, 0.006], performanceMetricID:com.apple.x, baselineName: "", maxPercent\n'
)
DEVICECTL = """{"info": {"commandType": "devicectl.list.devices", "outcome": "success"}, "result": {"devices": [
{"identifier": "1", "connectionProperties": {"pairingState": "paired", "tunnelState": "connected",
"transportType": "wired"}, "deviceProperties": {"developerModeStatus": "enabled", "name": "P", "osVersionNumber": "18"},
"hardwareProperties": {"marketingName": "iPhone 16", "platform": "iOS", "udid": "U"}},
{"identifier": "2", "deviceProperties": {"name": "asleep"}}]}}
"""
ALL = {
    "dumpsys_battery": BATTERY,
    "dumpsys_thermal": THERMAL,
    "odpm": RAILS,
    "benchmark_model": BENCHMARK + PROFILE,
    "op_profile": PROFILE_CSV,
    "mlperf": MLPERF,
    "batterystats": CHECKIN,
    "powermetrics": POWERMETRICS,
    "xctest": XCTEST,
    "devicectl": DEVICECTL,
}
PMIC = """    3V7_WL_SW_A current(0)=0.05000000A
   VDD_CORE_A current(7)=2.00000000A
    3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.80000000V
      EXT5V_V volt(24)=5.10000000V
       BATT_V volt(25)=nanV
"""
TEGRASTATS = (
    "01-02-2026 10:00:00 RAM 2000/7620MB (lfb 9x4MB) SWAP 10/3810MB (cached 0MB) CPU [5%@729,off,17%@1497] EMC_FREQ "
    "1%@2133 GR3D_FREQ 31%@[305,0] NVENC 79%@166 VIC off APE 200 cpu@45.5C CV0@-256C tj@46C VDD_IN 5200mW/5100mW "
    "VDD_CPU_GPU_CV 800mW/780mW NC 0mW/0mW\n"
)
LLAMA_TIMINGS = """0.07.869.454 I common_perf_print:    sampling time =       1.50 ms
0.07.869.455 I common_perf_print:        load time =     250.00 ms
0.07.869.460 I common_perf_print: prompt eval time =     400.00 ms /    10 tokens (   40.00 ms per token,    25.00 tokens per second)
0.07.869.467 I common_perf_print:        eval time =    2000.00 ms /    30 runs   (   66.67 ms per token,    15.00 tokens per second)
0.07.869.469 I common_perf_print:       total time =    2500.00 ms /    40 tokens
"""  # noqa: E501
MEMINFO = """Applications Memory Usage (in Kilobytes):
Uptime: 539397 Realtime: 539397

** MEMINFO in pid 1224 [com.example.app] **
                   Pss  Private  Private  SwapPss      Rss     Heap     Heap     Heap
                 Total    Dirty    Clean    Dirty    Total     Size    Alloc     Free
                ------   ------   ------   ------   ------   ------   ------   ------
  Native Heap    20000    19000        0       10    22000    30000    25000     5000
        TOTAL   100000    90000     5000       40   180000    50000    40000    10000

 App Summary
                       Pss(KB)                        Rss(KB)
         Native Heap:    20000                          22000
           TOTAL PSS:   100000            TOTAL RSS:   180000       TOTAL SWAP PSS:       40
"""
ORT = """Session creation time cost: 0.25 s
First inference time cost: 14 ms
Total inference time cost: 1.2 s
Total inference requests: 100
Average inference time cost total: 12.1 ms
Average inference time cost: 12.0 ms
Total inference run time: 1.21 s
Number of inferences per second: 82.6
Avg CPU usage: 50 %
Peak working set size: 50000000 bytes
Avg CPU usage:50
Peak working set size:50000000
Runs:100
Min Latency: 0.011 s
Max Latency: 0.031 s
P50 Latency: 0.0115 s
P90 Latency: 0.013 s
P95 Latency: 0.014 s
P99 Latency: 0.03 s
P999 Latency: 0.031 s
"""
TRTEXEC = """[02/01/2026-10:00:00] [I] === Performance summary ===
[02/01/2026-10:00:00] [I] Throughput: 400.5 qps
[02/01/2026-10:00:00] [I] Latency: min = 2.2 ms, max = 3.9 ms, mean = 2.5 ms, median = 2.4 ms, percentile(90%) = 2.7 ms, percentile(95%) = 2.8 ms, percentile(99%) = 3.5 ms
[02/01/2026-10:00:00] [I] Enqueue Time: min = 0.1 ms, max = 0.9 ms, mean = 0.2 ms, median = 0.2 ms, percentile(90%) = 0.3 ms, percentile(95%) = 0.3 ms, percentile(99%) = 0.4 ms
[02/01/2026-10:00:00] [I] GPU Compute Time: min = 2.0 ms, max = 3.5 ms, mean = 2.2 ms, median = 2.1 ms, percentile(90%) = 2.4 ms, percentile(95%) = 2.5 ms, percentile(99%) = 3.0 ms
[02/01/2026-10:00:00] [I] Total Host Walltime: 3.0 s
&&&& PASSED TensorRT.trtexec [TensorRT v8602] # trtexec --onnx=m.onnx
"""  # noqa: E501
EXECUTORCH = """[{"actualValue":9.25,"benchmarkModel":{"backend":"xnnpack","name":"mv2","quantization":"q8"},
"deviceInfo":{"arch":"SM-S926U1","availMem":0,"device":"samsung","os":"Android 14","totalMem":0},
"metric":"avg_inference_latency(ms)","targetValue":0.0},
{"actualValue":27.5,"benchmarkModel":{"backend":"xnnpack","name":"mv2","quantization":"q8"},
"deviceInfo":{"arch":"SM-S926U1","availMem":0,"device":"samsung","os":"Android 14","totalMem":0},
"metric":"model_load_time(ms)","targetValue":0.0},
{"actualValue":0.0,"benchmarkModel":{"backend":"xnnpack","name":"mv2","quantization":"q8"},
"deviceInfo":{"arch":"SM-S926U1","availMem":0,"device":"samsung","os":"Android 14","totalMem":0},
"metric":"load_status","targetValue":0.0}]
"""
ALL |= {
    "executorch": EXECUTORCH,
    "pmic": PMIC,
    "tegrastats": TEGRASTATS,
    "llama_timings": LLAMA_TIMINGS,
    "dumpsys_meminfo": MEMINFO,
    "ort_perf_test": ORT,
    "trtexec": TRTEXEC,
}

PLIST = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<plist version="1.0"><dict>'
    "<key>elapsed_ns</key><integer>1000500000</integer>"
    "<key>thermal_pressure</key><string>Nominal</string><key>processor</key><dict><key>cpu_power</key><real>993.5</real>"
    "<key>gpu_power</key><real>476.25</real><key>ane_power</key><integer>0</integer><key>combined_power</key>"
    "<real>1469.75</real></dict></dict></plist>\n"
)
