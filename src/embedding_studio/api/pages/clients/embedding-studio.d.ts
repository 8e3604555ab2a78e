export interface Options {
  /** A key with the scopes `search` and `events`; it is seen by whoever opens the page. */
  apiKey?: string;
  /** Who the user is, signed by your site. Assign `studio.userToken` when there is a new one. */
  userToken?: string;
  /** Where to search; default: the service's own. */
  collection?: string;
  /** Whether clicks within `data-es-session` and `data-es-object` are sent by themselves. */
  clicks?: boolean;
}

/** Fields of the request as the HTTP interface has them; others are sent as they are. */
export interface SearchOptions {
  user_id?: string;
  limit?: number;
  offset?: number;
  filter?: object;
  session_id?: string;
  create_session?: boolean;
  /** Aborts the request. */
  signal?: AbortSignal;
  [field: string]: unknown;
}

export interface FoundObject<Payload = Record<string, unknown>> {
  object_id: string;
  /** Smaller is nearer. */
  distance: number;
  payload: Payload;
  /** 1 is the top of the first page. */
  position: number;
  personalised: boolean;
}

export interface FoundPage<Payload = Record<string, unknown>> {
  search_results: FoundObject<Payload>[];
  /** To be given to `click`. */
  session_id: string | null;
  next_page_offset: number | null;
  personalised: boolean;
}

export class EmbeddingStudio {
  userToken: string | undefined;

  /** @param url where the service is, without the path of a route */
  constructor(url: string, options?: Options);

  /**
   * Return what is nearest to a query, recorded as a session.
   *
   * @throws an `Error` whose message says what is wrong, with the HTTP `status`
   */
  search<Payload = Record<string, unknown>>(query: string, options?: SearchOptions): Promise<FoundPage<Payload>>;

  /**
   * Say that the user did something with a result; it is sent within a second, or when the page is left.
   *
   * @throws a `TypeError` for an id that is empty or longer than 512 characters, or a type longer than 64
   */
  click(sessionId: string, objectId: string, eventType?: string): void;

  /** Send what is kept, now; resolves when the service has answered for it, or could not. */
  flush(): Promise<void>;
}
