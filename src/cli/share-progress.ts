/** Progress of work that knows the share it has done. */

/** One live line on a terminal; where there is none, a line every quarter. On stderr. */
export function shareProgress(what: string): (share: number) => void {
  let shown = 0;
  return (share) => {
    const quarters = Math.floor(share * 4);
    if (process.stderr.isTTY) {
      process.stderr.write(`\r${what} ${Math.round(share * 100)} %${share >= 1 ? '\n' : ''}`);
    } else if (quarters > shown) {
      shown = quarters;
      console.error(`${what} ${quarters * 25} %`);
    }
  };
}
