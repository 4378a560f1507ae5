import { fileURLToPath } from 'node:url';

/** The project's folder, seen from dist/test/helpers. */
export const root = fileURLToPath(new URL('../../..', import.meta.url));
