/** What keys and values are kept in, and which devices have it. */
import { InvalidParameterError } from '../errors.js';
import type { DType, WeightSource } from '../model/weights.js';
import type { KvCacheDtype } from './backend.js';

/** `int8` has a scale for each head and token; `fp8` is e4m3 without scales. */
export type KvDtype = DType | Exclude<KvCacheDtype, 'auto'>;

const DEVICES_WITH: Record<Exclude<KvCacheDtype, 'auto'>, readonly string[]> = {
  int8: ['cpu', 'reference'],
  fp8: ['cuda'],
};

/** Throws InvalidParameterError, by name, for what `device` does not have. */
export function checkKvCacheDtype(device: string, kvCacheDtype: KvDtype | 'auto' = 'auto'): void {
  const devices = kvCacheDtype in DEVICES_WITH ? DEVICES_WITH[kvCacheDtype as 'int8'] : [device];
  if (devices.includes(device)) return;
  throw new InvalidParameterError(
    `kvCacheDtype ${kvCacheDtype} is there with device ${devices.join(' and ')}; the device is ${device}`,
    { param: 'kvCacheDtype' },
  );
}

export function kvDtypeOf(
  { dtype }: Pick<WeightSource, 'dtype'>,
  kvCacheDtype: KvCacheDtype = 'auto',
): KvDtype {
  return kvCacheDtype === 'auto' ? dtype : kvCacheDtype;
}
