/** What crosses between the caller's thread and the engine's. */
import * as errors from '../errors.js';
import type { EngineInfo } from './api.js';
import type { NewRequest } from './sequence.js';
import type { StepOutput } from './step-output.js';

/** Caller to engine. */
export type Command =
  | { type: 'add'; request: NewRequest }
  | { type: 'abort'; handle: number; index?: number }
  /** Ends all requests and the thread. */
  | { type: 'close' };

/** Engine to caller. After `ready` come only steps. */
export type Report =
  /** Share of the weights that is loaded, 0 to 1. */
  | { type: 'progress'; share: number }
  | { type: 'ready'; info: EngineInfo }
  /** The engine could not start; the thread ends. */
  | { type: 'refused'; error: SerializedError }
  | { type: 'step'; output: StepOutput };

/** A cloned error loses its class: this keeps it. */
export interface SerializedError {
  name: string;
  message: string;
  param?: string;
}

export function serializeError(error: unknown): SerializedError {
  if (!(error instanceof Error)) return { name: 'Error', message: String(error) };
  const { name, message } = error;
  return error instanceof errors.MillraceError
    ? { name, message, param: error.param }
    : { name, message };
}

export function deserializeError({ name, message, param }: SerializedError): Error {
  const known = [
    errors.InvalidParameterError,
    errors.ModelError,
    errors.NativeError,
    errors.MemoryPlanError,
  ].find((each) => each.name === name);
  return known ? new known(message, { param }) : new Error(message);
}
