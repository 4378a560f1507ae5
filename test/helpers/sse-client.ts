/** A cheap streaming client for loads: node:http, one connection a request. */
import { request } from 'node:http';

export interface StreamResult {
  text: string;
  tokenIds: number[];
  finishReason: string | null;
  /** Everything up to `[DONE]` came. */
  complete: boolean;
}

/** Sends a streaming completion; hangs up after `hangUpAfter` token ids, if given. */
export function streamCompletion(
  url: string,
  body: object,
  hangUpAfter = Infinity,
): Promise<StreamResult> {
  return new Promise((resolve, reject) => {
    const result: StreamResult = { text: '', tokenIds: [], finishReason: null, complete: false };
    const sent = request(`${url}/v1/completions`, {
      method: 'POST',
      agent: false,
      headers: { 'content-type': 'application/json' },
    });
    const hangUp = (): void => {
      sent.destroy();
      resolve(result);
    };
    sent.on('error', reject);
    sent.on('response', (response) => {
      if (response.statusCode !== 200) reject(new Error(`status ${response.statusCode}`));
      let rest = '';
      response.setEncoding('utf8');
      response.on('error', reject);
      response.on('data', (chunk: string) => {
        const events = (rest + chunk).split('\n\n');
        rest = events.pop() as string;
        for (const event of events) {
          const data = event.slice('data: '.length);
          if (data === '[DONE]') {
            result.complete = true;
            continue;
          }
          const { choices, error } = JSON.parse(data);
          if (error) reject(new Error(error.message));
          for (const choice of choices ?? []) {
            result.text += choice.text;
            result.tokenIds.push(...choice.token_ids);
            result.finishReason = choice.finish_reason ?? result.finishReason;
          }
        }
        if (result.tokenIds.length >= hangUpAfter) hangUp();
      });
      response.on('end', () => resolve(result));
    });
    sent.end(JSON.stringify({ ...body, stream: true, return_token_ids: true }));
    if (hangUpAfter === 0) setImmediate(hangUp);
  });
}
