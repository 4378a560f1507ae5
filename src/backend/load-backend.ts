/** Executors by name: one that is not used need not be built. */
import { availableParallelism } from 'node:os';
import { InvalidParameterError } from '../errors.js';
import type { Backend } from './backend.js';
import type { CpuIsa } from './cpu/native.js';

export const DEVICES = ['cpu', 'cuda', 'reference'] as const;
export type Device = (typeof DEVICES)[number];

export interface DeviceOptions {
  /** `cuda` is an NVIDIA GPU, `reference` slow plain TypeScript. Default `cpu`. */
  device?: Device;
  /** Threads that compute; only with `cpu`. Default: as many as there are cores. */
  threads?: number;
  /** Only with `cpu`. Default: the best instruction set this machine has. */
  cpuIsa?: CpuIsa;
  /** Only with `cuda`: launch every operation of a step anew instead of replaying a graph. */
  enforceEager?: boolean;
}

/** Throws InvalidParameterError for what the device does not know: no option does nothing. */
export function checkDeviceOptions({
  device = 'cpu',
  threads,
  cpuIsa,
  enforceEager = false,
}: DeviceOptions): void {
  if (!DEVICES.includes(device)) {
    throw InvalidParameterError.expected(`one of ${DEVICES.join(', ')}`, 'device', device);
  }
  onlyWith('cpu', device, 'threads', threads);
  onlyWith('cpu', device, 'cpuIsa', cpuIsa);
  if (typeof enforceEager !== 'boolean') {
    throw InvalidParameterError.expected('boolean', 'enforceEager', enforceEager);
  }
  if (enforceEager) onlyWith('cuda', device, 'enforceEager', enforceEager);
}

/** What works, but not as well as whoever chose it may think. */
export function deviceWarnings(
  { threads = 1 }: DeviceOptions,
  cores = availableParallelism(),
): string[] {
  if (threads <= cores) return [];
  return [
    `warning: ${threads} threads share ${cores} ${cores === 1 ? 'core' : 'cores'}: they wait for one ` +
      'another in every operation, which is slower than a thread for each core',
  ];
}

/** Throws InvalidParameterError if `value` was given although `device` is another. */
export function onlyWith(wanted: Device, device: Device, name: string, value: unknown): void {
  if (value === undefined || device === wanted) return;
  throw new InvalidParameterError(
    `${name} is an option of device ${wanted}; the device is ${device}`,
    { param: name },
  );
}

/** Throws InvalidParameterError, or NativeError if native code is missing or cannot run here. */
export async function loadBackend(options: DeviceOptions): Promise<Backend> {
  checkDeviceOptions(options);
  const { device = 'cpu', threads, cpuIsa, enforceEager } = options;
  if (device === 'reference') return (await import('./reference/reference.js')).referenceBackend;
  if (device === 'cuda') {
    const { createCudaBackend } = await import('./cuda/cuda-backend.js');
    return createCudaBackend({ enforceEager });
  }
  const { createCpuBackend } = await import('./cpu/cpu-backend.js');
  return createCpuBackend({ threads, isa: cpuIsa });
}
