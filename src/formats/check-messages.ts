/** Lines that a check keeps; the rest is counted. */
export const CHECK_MESSAGES_MAX = 100;

/** Keeps the first lines and counts the rest, so that a hopeless image does not fill the memory. */
export class CheckMessages {
  readonly #lines: string[] = [];
  #more = 0;

  add(line: string): void {
    if (this.#lines.length < CHECK_MESSAGES_MAX) this.#lines.push(line);
    else this.#more++;
  }

  lines(): string[] {
    return this.#more === 0 ? this.#lines : [...this.#lines, `... and ${this.#more} more inconsistencies`];
  }
}
