/** Millrace as a library. */

export type {
  Delta,
  Engine,
  EngineInfo,
  EngineRequest,
  EngineStats,
  Finish,
  FinishReason,
  RequestTiming,
  StepReport,
  TokenLogprob,
} from './engine/api.js';
export type { EngineOptions } from './engine/engine-options.js';
export { type SamplingParams, samplingParams } from './engine/sampling-params.js';
export { startEngine } from './engine/start-engine.js';
export * from './errors.js';
export {
  type Completion,
  type GenerateOptions,
  type Generation,
  LLM,
  type LoadOptions,
  type Progress,
  type Prompt,
  type StreamPart,
} from './llm.js';
export { loadTokenizer } from './tokenizer/load-tokenizer.js';
export type { ChatMessage, Tokenizer } from './tokenizer/tokenizer.js';
